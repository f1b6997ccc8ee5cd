"""The scrub: reads every stored blob about once a week and compares it with its name, slowly and in the background.

A blob that is damaged goes to `quarantine/`: from then on it is unknown (404), so that a client's next push brings it
again, which mends every image that needs it. A file that the system cannot read counts as damaged at once, but stays in
its place until it could not be read for an hour: a cable or a network disk may come back, and moving the file would
take a good blob from everybody. Manifests' bytes in the database are compared as well; reading one never gives bytes
that are not its digest's (`Index.manifest`).

A GET compares a blob's size only: a flipped bit is found here, and by the client, who checks the digest.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from faas.errors import FaasError
from faas.metrics import Metrics
from faas.oci.digest import Digest
from registry.index import scrub as rows
from registry.index.index import Index
from registry.storage.base import BlobStore, Condition

log = logging.getLogger("registry.scrub")

WEEK_SECONDS = 7 * 86_400.0
AGAIN_SECONDS = 3600.0  # until what is damaged is looked at again, and what cannot be read is given up
ROUND_SECONDS = 900.0  # between looks for what is due
BYTES_PER_SECOND = 8 << 20  # 4.8 TB in a week
BATCH_BYTES = 64 << 20  # checked before that is written down: so much is read twice after a restart

Pace = Callable[[int], Awaitable[None]]


class Act(enum.Enum):
    KEEP = "keep"
    SUSPECT = "suspect"  # damaged, and left where it is
    QUARANTINE = "quarantine"


def judge(condition: Condition, damaged_at: float | None, now: float) -> Act:
    """What to do about a blob that was found so twice; `damaged_at`: when an earlier check first found it damaged."""
    if condition is Condition.WHOLE:
        return Act.KEEP
    if condition is Condition.UNREADABLE and (damaged_at is None or now - damaged_at < AGAIN_SECONDS):
        return Act.SUSPECT
    return Act.QUARANTINE


@dataclass
class Pass:
    """One look at all that was due; times in Unix seconds."""

    began_at: float
    everything: bool  # asked for by somebody, at full speed; else what is due, slowly
    blobs: int = 0  # to check
    bytes: int = 0
    checked_blobs: int = 0
    checked_bytes: int = 0
    checked_manifests: int = 0
    damaged: int = 0  # found in this pass
    ended_at: float | None = None


@dataclass
class Scrub:
    index: Index
    blobs: BlobStore
    metrics: Metrics
    last: Pass | None = None  # the running one, or the last one that ran to its end
    _asked_at: float = 0.0
    _asked: asyncio.Event = field(default_factory=asyncio.Event)
    _manifests_at: float = 0.0
    _manifests: set[tuple[str, str]] = field(default_factory=set)  # (repository, digest) of damaged ones

    def ask(self) -> None:
        """Check everything now."""
        now = time.time()
        self._asked_at = now
        self.last = Pass(now, everything=True)  # so that who asks sees their own pass, not the one before
        self._asked.set()

    async def run(self) -> None:
        """For as long as the registry serves."""
        await self._count()
        while True:
            try:
                await self.round()
            except (FaasError, OSError):
                log.exception("the scrub failed; nothing is lost, it is tried again")
            try:
                async with asyncio.timeout(ROUND_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def round(self, now: float | None = None) -> Pass | None:
        """Check what is due, or everything where that was asked for. None: nothing was."""
        self._asked.clear()
        now = time.time() if now is None else now
        asked, everything = self._asked_at, self._asked_at > 0
        before, again = (now, now) if everything else (now - WEEK_SECONDS, now - AGAIN_SECONDS)
        count, size = await self.index.database.ask(lambda tx: rows.amount(tx, before, again))
        manifests_due = everything or now - self._manifests_at >= WEEK_SECONDS
        if not count and not manifests_due:
            return None
        current = self.last = Pass(now, everything, count, size)
        pace = _hurry if everything else _Paced(BYTES_PER_SECOND, self._asked)
        if manifests_due:
            await self._check_manifests(current)
            self._manifests_at = now
        while self._asked_at == asked and (
            some := await self.index.database.ask(lambda tx: rows.due(tx, before, again))
        ):
            await self._check_some(some, current, pace, again)
        if self._asked_at == asked:
            self._asked_at = 0.0
            current.ended_at = time.time()
        await self._count()
        return current

    async def _check_some(self, some: list[rows.Due], current: Pass, pace: Pace, since: float) -> None:
        whole: list[Digest] = []
        pending = 0

        async def write_down() -> None:
            now = max(time.time(), since)  # whatever the clock does: nothing is due twice in one pass
            if whole:
                await self.index.database.change(lambda tx: rows.checked(tx, whole, now))
            whole.clear()

        for blob in some:
            if await self.blobs.check(blob.digest, blob.size, pace) is Condition.WHOLE:
                whole.append(blob.digest)
            elif await self._settle(blob, since):
                current.damaged += blob.damaged_at is None
            current.checked_blobs += 1
            current.checked_bytes += blob.size
            pending += blob.size
            if pending >= BATCH_BYTES:
                await write_down()
                pending = 0
        await write_down()

    async def _settle(self, blob: rows.Due, since: float) -> bool:
        """Read it once more, in its turn: nobody writes or takes it now. Whether it is damaged indeed."""
        async with self.index.turns.of(blob.digest):
            if not await self.index.database.ask(lambda tx: rows.still(tx, blob.digest)):
                return False
            condition = await self.blobs.check(blob.digest, blob.size, _hurry)
            now = max(time.time(), since)
            act = judge(condition, blob.damaged_at, now)
            if act is Act.KEEP:
                await self.index.database.change(lambda tx: rows.checked(tx, [blob.digest], now))
                return False
            first = now if blob.damaged_at is None else blob.damaged_at
            await self.index.database.change(lambda tx: rows.damaged(tx, blob.digest, now, first))
            if act is Act.QUARANTINE:
                await self.blobs.quarantine(blob.digest)
        if blob.damaged_at is None:
            log.error("the blob %s of %d bytes is %s", blob.digest, blob.size, condition.value)
            await self._count()
        return True

    async def _check_manifests(self, current: Pass) -> None:
        found: set[tuple[str, str]] = set()
        last = ("", "")
        while some := await self.index.database.ask(partial(rows.manifests_after, key=last)):
            bad = await asyncio.to_thread(lambda: [row[:2] for row in some if not is_intact(row[1], row[2])])
            found.update(bad)
            current.checked_manifests += len(some)
            last = some[-1][:2]
        for repository, digest in found - self._manifests:
            log.error("the manifest %s@%s is damaged in the database", repository, digest)
        current.damaged += len(found - self._manifests)
        self._manifests = found

    async def status(self) -> dict[str, Any]:
        """For `GET /v2/_faas/scrub`."""
        last = None if self.last is None else asdict(self.last)  # first: of a pass that has ended all is below
        bad = await self._damaged_manifests()
        return {
            "pass": last,
            "damaged": [asdict(blob) for blob in await self.index.database.ask(rows.damaged_blobs)],
            "damaged_manifests": bad,
            "quarantine": [asdict(file) for file in await self.blobs.quarantined()],
        }

    async def damaged(self) -> list[str]:
        """What is damaged and not mended, some of it: digests of blobs, `repository@digest` of manifests."""
        found = await self.index.database.ask(rows.damaged_digests)
        return [*found, *(f"{repository}@{digest}" for repository, digest in sorted(self._manifests))][: rows.LISTED]

    async def _damaged_manifests(self) -> list[dict[str, Any]]:
        """Those that are so still: a push mends them."""
        listed = []
        for repository, digest in sorted(self._manifests)[: rows.LISTED]:
            raw = await self.index.database.ask(partial(rows.manifest_bytes, key=(repository, digest)))
            if raw is None or is_intact(digest, raw):
                self._manifests.discard((repository, digest))
                continue
            names = await self.index.database.ask(partial(rows.tags_of, key=(repository, digest)))
            listed.append({"repository": repository, "digest": digest, "tags": names})
        await self._count()
        return listed

    async def _count(self) -> None:
        count = await self.index.database.ask(rows.damaged_count)
        self.metrics.registry_damaged.set(count + len(self._manifests))


def is_intact(digest: str, raw: bytes) -> bool:
    return Digest.of(raw, digest.partition(":")[0]) == Digest.parse(digest)


class _Paced:
    """So many bytes a second, until somebody is in a hurry."""

    def __init__(self, rate: float, hurry: asyncio.Event) -> None:
        self._rate = rate
        self._hurry = hurry
        self._next = time.monotonic()

    async def __call__(self, count: int) -> None:
        self._next = max(self._next, time.monotonic() - 1.0) + count / self._rate
        if not self._hurry.is_set():
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))


async def _hurry(count: int) -> None:
    """At full speed."""
