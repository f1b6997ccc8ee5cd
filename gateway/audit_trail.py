"""`AuditTrail`: writes the audit log. Implements `faas.audit.Trail`.

A record is committed, and flushed to the disk, before the request that it is about is answered. Where that fails, the
deed is done and cannot be taken back: the whole record goes to the server's own log at once, is kept in memory and
tried again each second, and until it is written nothing else is changed (`check`). So nothing is lost in silence: at
most what was under way when the disk failed and the process died too, and that stands in the server's log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

from faas.audit import Check, Entry, Ration, new_entry
from faas.background import Background
from faas.errors import FaasError, Unavailable
from faas.state.session import Database
from gateway.periodic import Periodic
from gateway.store import audit
from gateway.store.audit import End

log = logging.getLogger("faas.audit")

KEPT_DAYS = 400  # a year, and time to look at it
MOST = 1_000_000  # records; some 500 MB
TRIM_SECONDS = 3600.0
RETRY_SECONDS = 1.0
PIECE = 5000  # records of one transaction
WAITING = 10_000  # entries that nobody waits for
LOGINS_AN_HOUR = 120  # refused ones, of everybody together: strangers must not fill the log in less than a year
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`first`: up to where the log was cut for its bound. `broken`: "" where the chain is whole."""

    count: int
    first: End
    last: End
    broken: str


class AuditTrail:
    """`start`ed once, `stop`ped once. `known` says whether a name is somebody's: what else is written as a name at a
    login may be a password. `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        known: Callable[[str], bool],
        *,
        most: int = MOST,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._known = known
        self._most = most
        self._clock = clock
        self._ration = Ration()
        self._logins = Ration(most=LOGINS_AN_HOUR, seconds=3600.0)
        self._waiting: list[Entry] = []
        self._failed: list[Entry] = []
        self._writing = asyncio.Lock()
        self._last: End | None = None  # as this process has written it
        self._background = Background()
        self._retrying = Periodic("the audit log", RETRY_SECONDS, self._write_waiting)
        self._trimming = Periodic("the audit log's bound", TRIM_SECONDS, self.trim, first=60.0)

    def start(self) -> None:
        self._retrying.start()
        self._trimming.start()

    async def stop(self) -> None:
        await self._trimming.stop()
        await self._background.finish(5.0)
        await self._retrying.stop(once_more=True)
        if self._last is not None:
            log.info("the audit log ends", extra={"seq": self._last.seq, "hash": self._last.hash})

    def check(self) -> None:
        """Raises Unavailable while a record cannot be written."""
        if self._failed:
            raise Unavailable("nothing is changed while the audit log cannot be written", hint="is the disk full?")

    async def record(self, entry: Entry) -> None:
        """Durable when this returns, or kept and logged. Goes on to its end where the caller is cancelled."""
        if (passed := self._ration.pass_on(entry)) is not None:
            await self._background.complete(self._record(passed), "audit record")

    async def _record(self, entry: Entry) -> None:
        try:
            await self._append([entry])
        except FaasError as error:
            self._failed.append(entry)
            log.critical("not in the audit log yet: %s", error.message, extra={"audit": asdict(entry)})

    def note(self, entry: Entry) -> None:
        passed = self._ration.pass_on(entry)
        if passed is None:
            return
        if len(self._waiting) >= WAITING:
            log.critical("no room for an audit record", extra={"audit": asdict(passed)})
            return
        self._waiting.append(passed)

    def login_refused(self, door: str) -> Callable[[str, str], None]:
        """What `faas.attempts` tells of failed logins at one door."""

        def told(address: str, name: str) -> None:
            by = name if self._known(name) else ""
            entry = new_entry(
                by=by, token="", address=address, action="login", object_=door, status=401, reason="Unauthenticated"
            )
            if (passed := self._logins.pass_on(replace(entry, by="", address=""))) is not None:
                self.note(replace(entry, count=passed.count))

        return told

    async def find(self, query: audit.Query) -> list[dict[str, object]]:
        """Records as they are shown, the oldest first."""
        found = await self._database.ask(lambda tx: audit.find(tx, query))
        return [{**record.shown(), "hash": hash_of} for record, hash_of in found]

    async def verify(self, head: End | None = None) -> Verdict:
        """Walk along the whole chain. `head`: a number and a hash that somebody noted; it must still be there."""
        check = Check()
        while True:
            first, found, last = await self._database.ask(partial(audit.walk, after=check.seq or 0, limit=PIECE))
            if check.seq is None or check.seq < first.seq:  # the beginning, or it was cut meanwhile
                check = Check(first.seq, first.hash, check.count)
            for record, hash_of in found:
                if not check.add(record, hash_of):
                    return Verdict(check.count, first, last, check.broken)
            if len(found) < PIECE:
                break
        if (check.seq, check.hash) != (last.seq, last.hash):
            check.broken = f"it ends at {check.seq}, and was written up to {last.seq}"
        elif self._last is not None and last.seq < self._last.seq:
            check.broken = f"it ends at {last.seq}, and this server has written up to {self._last.seq}"
        elif head is not None and head.seq >= first.seq:
            there = await self._database.ask(lambda tx: audit.hash_at(tx, head.seq))
            if there != head.hash:
                check.broken = f"{head.seq} is not the record that was noted"
        return Verdict(check.count, first, last, check.broken)

    async def trim(self) -> None:
        """Hold the bound. Raises Unavailable."""
        now = int(self._clock() * 1000)
        while await self._database.change(lambda tx: audit.trim(tx, now - KEPT_DAYS * DAY_MS, self._most, PIECE, now)):
            log.info("the audit log was cut at its beginning: what is too old, or too much")
        if self._last is not None:  # whoever keeps the server's log has a head to compare with
            log.info("the audit log's head", extra={"seq": self._last.seq, "hash": self._last.hash})

    async def _append(self, entries: list[Entry]) -> None:
        last = await self._database.change(lambda tx: audit.append(tx, entries))
        if self._last is None or last.seq > self._last.seq:
            self._last = last

    async def _write_waiting(self) -> None:
        async with self._writing:  # two would write the same
            for queue in (self._failed, self._waiting):
                while piece := queue[:PIECE]:
                    await self._append(piece)
                    del queue[: len(piece)]
