"""`Registry`: the registry's parts, opened and closed together. `registry.app` speaks HTTP for it."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import asdict
from pathlib import Path

from faas.audit import LogTrail, Trail
from faas.auth import Accounts
from faas.background import Background
from faas.bodies import Bodies
from faas.errors import FaasError
from faas.metrics import Metrics
from registry.access import Access
from registry.answers import LARGE_BYTES
from registry.gc import Collected, Collection, CollectionTurn, Preview
from registry.holders import Holders
from registry.index.index import Index
from registry.index.policies import Policies
from registry.index.retention import Rules
from registry.keeping import Keeping
from registry.scrub import Scrub
from registry.sendfile import FileSender
from registry.space import Space
from registry.storage.base import BlobStore
from registry.storage.filesystem import FileBlobStore
from registry.upstream.cache import Cache
from registry.upstream.upstream import Upstreams

log = logging.getLogger("registry")

UPLOAD_SECONDS = 24 * 3600.0  # an upload session that nobody touches for so long is thrown away
SWEEP_SECONDS = 3600.0
COLLECT_SECONDS = 3600.0
FIRST_SECONDS = (300.0, 600.0)  # to the first one: who is restarted within the hour collects, too
MEASURE_SECONDS = 2.0


class Registry:
    """Blobs on disk, rows beside them. `accounts`, `token_flow`: see `Access`."""

    def __init__(
        self,
        index: Index,
        blobs: BlobStore,
        accounts: Accounts | None,
        metrics: Metrics,
        holders: Holders | None,
        upstreams: Upstreams,
        token_flow: bool,
    ) -> None:
        self.index = index
        self.blobs = blobs
        self.metrics = metrics
        self.holders = holders
        self.policies = Policies(index.database)
        self.retention = Rules(index.database)
        self.space = Space(index.quotas, blobs)
        self.keeping = Keeping()
        self.scrub = Scrub(index, blobs, metrics)
        self.cache = Cache(upstreams, index, blobs, self.space, metrics, self.stored)
        self.sender = FileSender()
        self.answers = Bodies(LARGE_BYTES)
        self.large_manifests = asyncio.Lock()  # one after another: to read one takes 30 times its bytes
        self.access = Access(accounts, self.policies, upstreams, token_flow=token_flow)
        self.trail: Trail = LogTrail()
        self._background = Background()
        self._collecting = CollectionTurn()
        self._changed = asyncio.Event()

    @classmethod
    async def open(
        cls,
        data: Path,
        database_url: str,
        *,
        accounts: Accounts | None,
        metrics: Metrics,
        holders: Holders | None = None,
        upstreams: Upstreams | None = None,
        token_flow: bool = False,
    ) -> Registry:
        blobs = FileBlobStore(data)
        await blobs.open()
        index = await Index.open(database_url)
        registry = cls(index, blobs, accounts, metrics, holders, upstreams or Upstreams(), token_flow)
        await registry.policies.load()
        await registry.retention.load()
        await index.quotas.load()
        metrics.registry_collected_at.set_to_current_time()
        registry.stored()
        registry._background.start(registry._measure(), "adding up")
        registry._background.start(registry._sweep(), "registry sweeper")
        registry._background.start(registry._collect_regularly(), "garbage collection")
        registry._background.start(registry.scrub.run(), "scrub")
        return registry

    async def close(self) -> None:
        await self._background.cancel()
        await self.policies.close()
        await self.retention.close()
        await self.index.quotas.close()
        await self.cache.close()
        await self.index.close()
        self.blobs.close()
        self.sender.close()

    def stored(self) -> None:
        """The bytes that are stored have changed: say how many they are, soon."""
        self._changed.set()

    async def _measure(self) -> None:
        """Once for many changes: adding up costs more than a small blob."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                self.metrics.registry_storage.set(await self.index.total_bytes())
            except FaasError as error:
                log.warning("cannot add up what is stored: %s", error.message)
            await asyncio.sleep(MEASURE_SECONDS)

    async def collect(self, *, expire: bool = False, namespace: str | None = None) -> Collected:
        """Take away what nobody needs, one collection at a time; see `gc.Collection`. Raises Throttled, Unavailable:
        see `gc.CollectionTurn`."""
        async with self._collecting.of(namespace):
            found = await self._collection(expire, namespace).run()
        if found != Collected():
            log.info("collected", extra=asdict(found))
        self.metrics.registry_collected_bytes.inc(found.bytes)
        if namespace is None:
            self.metrics.registry_collected_at.set_to_current_time()
        self.stored()
        return found

    async def preview(self, *, expire: bool = False, namespace: str | None = None) -> Preview:
        """What a collection would take away now. Raises as `collect` does."""
        async with self._collecting.of(namespace):
            return await self._collection(expire, namespace).preview()

    def _collection(self, expire: bool, namespace: str | None) -> Collection:
        return Collection(self.index, self.blobs, self.holders, self.retention.of, expire, namespace, self.keeping)

    async def _collect_regularly(self) -> None:
        await asyncio.sleep(random.uniform(*FIRST_SECONDS))  # noqa: S311 - so that several do not begin together
        while True:
            try:
                await self.collect(expire=True)
            except Exception:
                log.exception("the garbage collection failed; nothing is lost, it is tried again")
            await asyncio.sleep(COLLECT_SECONDS)

    async def _sweep(self) -> None:
        while True:
            try:
                if swept := await self.blobs.sweep(UPLOAD_SECONDS):
                    log.info("swept %d abandoned uploads", swept)
            except OSError as error:
                log.warning("cannot sweep uploads: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)
