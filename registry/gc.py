"""Garbage collection while serving: incremental, crash-safe, without a lock over everything.

Rows go first and files last: tags, those of copies that nobody wants any more and those that the retention rules take;
manifests that nothing names; the blobs of each repository that nothing needs; then, blob by blob and in the digest's
own turn, the file and its row. A crash in between leaves a file without a row, or a row that says `leaving`; the next
collection goes on from there. What a client was told to be here is leased: a push never races a collection, nor does
a deploy.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from faas.errors import Throttled, Unavailable
from faas.oci.digest import Digest
from registry.holders import Holders, held_digests
from registry.index.garbage import Garbage, Gone
from registry.index.index import Index
from registry.index.simulation import simulation
from registry.keeping import Keeping
from registry.rules import Rule
from registry.storage.base import BlobStore

log = logging.getLogger("registry.gc")

STRAY_SECONDS = 3600.0  # a file without a row may be about to get one
NAMESPACE_SECONDS = 10.0  # of a collection that one namespace's administrator asks for;
SHORT_SECONDS = 0.5  # what goes beyond that is followed by a rest that is
REST = 9.0  # times as long
LISTED = 1000  # tags, and manifests, that a preview names one by one; the rest it counts


@dataclass(slots=True)
class Collected:
    """What a collection took away, or would have taken."""

    tags: int = 0
    manifests: int = 0
    repositories: int = 0
    blobs: int = 0
    bytes: int = 0
    files: int = 0  # without a row: what a crash left


@dataclass(slots=True)
class Preview:
    """What a collection would take: all of it counted, the first of the tags and of the manifests by name."""

    counts: Collected = field(default_factory=Collected)
    tags: list[Gone] = field(default_factory=list)
    manifests: list[Gone] = field(default_factory=list)


class CollectionTurn:
    """One collection, or preview of one, at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._rest_until = 0.0  # monotonic

    @asynccontextmanager
    async def of(self, namespace: str | None) -> AsyncIterator[None]:
        """One namespace's administrator does not wait for it, and has a part of the time only: a collection looks
        through everybody's rows, and a preview keeps every writer waiting. Raises Throttled, Unavailable."""
        if namespace is None:
            async with self._lock:
                yield
            return
        rest = self._rest_until - time.monotonic()
        if self._lock.locked() or rest > 0:
            words = "a collection is under way, or has just been; try again shortly"
            raise Throttled(words, reason="TooManyCollections", retry_after=max(1, math.ceil(rest)))
        async with self._lock:
            began = time.monotonic()
            try:
                async with asyncio.timeout(NAMESPACE_SECONDS):
                    yield
            except TimeoutError:
                raise Unavailable(
                    f"{namespace} has too much to collect in {NAMESPACE_SECONDS:g} s; that is done each hour"
                ) from None
            finally:
                now = time.monotonic()
                self._rest_until = now + REST * max(0.0, now - began - SHORT_SECONDS)


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection. `expire`: also take tags by the rules. `namespace`: only from its repositories; None: all.

    Where `holders` fails nothing is deleted; while `keeping` is held no file is.
    """

    index: Index
    blobs: BlobStore
    holders: Holders | None
    rule_of: Callable[[str], Rule]
    expire: bool = False
    namespace: str | None = None
    keeping: Keeping | None = None
    stray_seconds: float = field(default_factory=lambda: STRAY_SECONDS)
    now: float = field(default_factory=time.time)

    async def preview(self) -> Preview:
        """What `run` would take now, found by doing it within a transaction that is undone."""
        held = await held_digests(self.holders)
        found = Preview()
        counts = found.counts
        async with simulation(self.index.database) as transactions:
            garbage = Garbage(transactions, held, self.rule_of, self.now, self.namespace)
            async for gone in self._tags(garbage):
                counts.tags += len(gone)
                found.tags += gone[: LISTED - len(found.tags)]
            async for gone in garbage.drop_manifests():
                counts.manifests += len(gone)
                found.manifests += gone[: LISTED - len(found.manifests)]
            await garbage.unlink_blobs()
            async for leaving in garbage.leaving():
                counts.blobs += len(leaving)
                counts.bytes += sum(size for _, size in leaving)
            counts.repositories = await garbage.drop_repositories()
        counts.files = len(await self._strays(Garbage(self.index.database, held, self.rule_of, self.now)))
        return found

    async def run(self) -> Collected:
        """Take it. What fails for one blob is logged, and tried again by the next collection."""
        held = await held_digests(self.holders)
        garbage = Garbage(self.index.database, held, self.rule_of, self.now, self.namespace)
        found = Collected()
        async for gone in self._tags(garbage):
            found.tags += len(gone)
            for tag in gone:
                log.info("%s:%s goes: %s", tag.repository, tag.tag, tag.why, extra={"digest": tag.digest})
        async for gone in garbage.drop_manifests():
            found.manifests += len(gone)
        await garbage.unlink_blobs()
        async for leaving in garbage.leaving():
            unlinked = {digest: size for digest, size in leaving if await self._unlink(garbage, digest)}
            await garbage.gone(list(unlinked))
            found.blobs += len(unlinked)
            found.bytes += sum(unlinked.values())
        found.repositories = await garbage.drop_repositories()
        for digest in await self._strays(garbage):
            found.files += await self._unlink_stray(garbage, digest)
        return found

    async def _tags(self, garbage: Garbage) -> AsyncIterator[list[Gone]]:
        async for gone in garbage.forget_copies():
            yield gone
        if self.expire:
            async for gone in garbage.expire_tags():
                yield gone

    async def _unlink(self, garbage: Garbage, digest: Digest) -> bool:
        async with self.index.turns.of(digest):
            return await garbage.still_leaving(digest) and await self._delete(digest)

    async def _unlink_stray(self, garbage: Garbage, digest: Digest) -> bool:
        async with self.index.turns.of(digest):
            return bool(await garbage.unknown([digest])) and await self._delete(digest)

    async def _delete(self, digest: Digest) -> bool:
        if self.keeping is not None and self.keeping.is_held:
            return False  # its row says `leaving`: the next collection takes it
        try:
            await self.blobs.delete(digest)
        except OSError as error:
            log.warning("cannot delete the blob %s: %s", digest, error)
            return False
        return True

    async def _strays(self, garbage: Garbage) -> list[Digest]:
        return [d async for some in self.blobs.listing(self.stray_seconds) for d in await garbage.unknown(some)]
