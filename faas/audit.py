"""The audit log: who changed what, as a chain of records, and the port that takes them.

Each record carries the hash of the one before it, so that nobody takes one out, or changes one, without breaking the
chain (`Check`). No record holds a value that was set or a secret: names, addresses and outcomes only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from faas.attempts import network_of

NO_HASH = "0" * 64  # before the first record of all
TEXT_LENGTH = 512  # letters of each text
SECRETS = ("faas_", "faask_")  # how tokens and keys begin: one that was written as a name is not kept
HIDDEN = "…"


@dataclass(frozen=True, slots=True)
class Entry:
    """`at` is Unix milliseconds; `by` the principal ("": nobody that is known), `token` the name of the token used.

    `outcome`: done | refused | failed | unknown (the client had gone); `reason` an error's code. `count`: how many such
    requests this stands for, where those before it were too many to be kept one by one.
    """

    at: int
    by: str
    token: str
    address: str
    action: str
    namespace: str
    object: str
    outcome: str
    status: int
    reason: str
    request_id: str
    count: int = 1


FIELDS = tuple(one.name for one in fields(Entry))


@dataclass(frozen=True, slots=True)
class Record:
    """An entry in its place: its number, and the hash of the record before."""

    seq: int
    previous: str
    entry: Entry

    @property
    def hash(self) -> str:
        """SHA-256 of all of it, as JSON in the order of its fields."""
        values = [self.seq, self.previous, *(getattr(self.entry, name) for name in FIELDS)]
        return hashlib.sha256(json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()

    def shown(self) -> dict[str, Any]:
        """As the API and an export have it, with its own hash."""
        time_of = datetime.fromtimestamp(self.entry.at / 1000, UTC).isoformat(timespec="milliseconds")
        written = {"seq": self.seq, "time": time_of.replace("+00:00", "Z"), **asdict(self.entry)}
        del written["at"]
        return {**written, "previous": self.previous, "hash": self.hash}

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> Record:
        """What `shown` made. Raises ValueError."""
        try:
            moment = datetime.fromisoformat(written["time"])
            at = round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
            values = {name: written[name] for name in FIELDS if name != "at"}
            return cls(int(written["seq"]), str(written["previous"]), Entry(at=at, **values))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no record of an audit log: {error}") from None


@dataclass(slots=True)
class Check:
    """Walks along a chain. `broken` says where it is, once it is."""

    seq: int | None = None  # of the last one seen; None: whatever comes first is taken
    hash: str = NO_HASH
    count: int = 0
    broken: str = ""

    def add(self, record: Record, hash_of: str) -> bool:
        """The next record, whose hash is said to be `hash_of`; False where the chain breaks here."""
        if self.seq is not None and record.seq != self.seq + 1:
            self.broken = f"after {self.seq} comes {record.seq}: what was between them is gone"
        elif self.seq is not None and record.previous != self.hash:
            self.broken = f"{record.seq} does not follow from {self.seq}"
        elif record.hash != hash_of:
            self.broken = f"{record.seq} is not what was written"
        else:
            self.seq, self.hash, self.count = record.seq, hash_of, self.count + 1
        return not self.broken


class Trail(Protocol):
    """Takes entries."""

    def check(self) -> None:
        """Raises Unavailable where nothing can be recorded now: nothing is changed then."""
        ...

    async def record(self, entry: Entry) -> None:
        """Durable when this returns. What cannot be written is logged as a whole, and kept to be written."""
        ...

    def note(self, entry: Entry) -> None:
        """Will be written within a second or so: for what nobody waits for."""
        ...


class LogTrail:
    """Implements `Trail` where there is no database for it: a registry that runs alone writes to its log."""

    _log = logging.getLogger("faas.audit")

    def check(self) -> None:
        return

    async def record(self, entry: Entry) -> None:
        self.note(entry)

    def note(self, entry: Entry) -> None:
        self._log.info("%s %s %s", entry.action, entry.object, entry.outcome, extra={"audit": asdict(entry)})


@dataclass(slots=True)
class _Share:
    """What one caller has used since `since`, and how many came after that."""

    since: float
    used: int = 0
    left_out: int = 0


@dataclass(slots=True)
class Ration:
    """How much of what was refused or failed is kept: so many a minute of each caller and address. The log has a bound,
    and who may do nothing must not push out of it what others did. What is left out is counted in the next one. Whose
    client goes each time before the end has one for all addresses, a larger one: some of it may be done."""

    most: int = 30
    most_unknown: int = 60
    seconds: float = 60.0
    kept: int = 4096  # callers
    clock: Callable[[], float] = time.monotonic
    _shares: OrderedDict[tuple[str, str, bool], _Share] = field(default_factory=OrderedDict)

    def pass_on(self, entry: Entry) -> Entry | None:
        """The entry to write, with those that were left out before it; None where it is left out itself."""
        if entry.outcome == "done":
            return entry
        unknown = entry.outcome == "unknown"
        most = self.most_unknown if unknown else self.most
        now, key = self.clock(), (entry.by, "" if unknown else network_of(entry.address), unknown)
        share = self._shares.setdefault(key, _Share(now))
        self._shares.move_to_end(key)
        if len(self._shares) > self.kept:
            self._shares.popitem(last=False)
        if now - share.since >= self.seconds:
            share.since, share.used = now, 0
        if share.used >= most:
            share.left_out += entry.count
            return None
        share.used += 1
        left_out, share.left_out = share.left_out, 0
        return replace(entry, count=entry.count + left_out) if left_out else entry


def clean(text: str) -> str:
    """What may stand in a record: no control characters, no end of letters, and nothing that looks like a token."""
    parts = [HIDDEN if part.startswith(SECRETS) else part for part in text[: 4 * TEXT_LENGTH].split("/")]
    return "".join(letter if letter.isprintable() else "?" for letter in "/".join(parts))[:TEXT_LENGTH]


def outcome_of(status: int) -> str:
    """An answer's status, in a word."""
    if status < 400:
        return "done"
    return "refused" if status in (401, 403, 429) else "failed"


def new_entry(
    *,
    by: str,
    token: str,
    address: str | None,
    action: str,
    object_: str,
    status: int,
    namespace: str = "",
    reason: str = "",
    request_id: str = "",
    now: float | None = None,
) -> Entry:
    """Of what happened just now; status 0: nobody knows how it ended."""
    return Entry(
        int((time.time() if now is None else now) * 1000),
        clean(by),
        clean(token),
        clean(address or ""),
        action,
        clean(namespace),
        clean(object_),
        outcome_of(status) if status else "unknown",
        status,
        reason,
        request_id,
    )
