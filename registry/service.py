"""`Registry`: the registry's parts, opened and closed together. `registry.app` speaks HTTP for it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from faas.auth import ROOT, Authenticator
from faas.background import Background
from faas.errors import Unauthenticated
from faas.metrics import Metrics
from registry import gc
from registry.access import Caller, Signer
from registry.holders import Holders
from registry.index.garbage import Collected
from registry.index.index import Index
from registry.index.policies import Policies
from registry.storage.base import BlobStore
from registry.storage.filesystem import FileBlobStore

log = logging.getLogger("registry")

UPLOAD_SECONDS = 24 * 3600.0  # an upload session that nobody touches for so long is thrown away
SWEEP_SECONDS = 3600.0
COLLECT_SECONDS = 3600.0


class Registry:
    """Blobs on disk, rows beside them. `authenticator` None: no login at all."""

    def __init__(
        self,
        index: Index,
        blobs: BlobStore,
        authenticator: Authenticator | None,
        metrics: Metrics,
        holders: Holders | None,
    ) -> None:
        self.index = index
        self.blobs = blobs
        self.authenticator = authenticator
        self.metrics = metrics
        self.holders = holders
        self.policies = Policies(index.database)
        self.signer = Signer()
        self.token_flow = False  # clients are told to ask for a token; Basic is taken all the same
        self._background = Background()
        self._collecting = asyncio.Lock()

    @classmethod
    async def open(
        cls,
        data: Path,
        database_url: str,
        *,
        authenticator: Authenticator | None,
        metrics: Metrics,
        holders: Holders | None = None,
    ) -> Registry:
        blobs = FileBlobStore(data)
        await blobs.open()
        registry = cls(await Index.open(database_url), blobs, authenticator, metrics, holders)
        await registry.policies.load()
        metrics.registry_storage.set(await registry.index.total_bytes())
        registry._background.start(registry._sweep(), "registry sweeper")
        registry._background.start(registry._collect_regularly(), "garbage collection")
        return registry

    async def close(self) -> None:
        await self._background.cancel()
        await self.index.close()
        self.blobs.close()

    async def caller(self, token: str, user: str | None) -> Caller:
        """Who these credentials belong to: a token of ours, or a principal's own. Raises Unauthenticated."""
        if user is None and (scoped := self.signer.read(token)) is not None:
            return scoped
        principal = ROOT if self.authenticator is None else await self.authenticator.authenticate(token, user)
        if principal is None:
            raise Unauthenticated("unknown user or token")
        return Caller(principal)

    async def stored(self) -> None:
        """Say how many bytes are stored."""
        self.metrics.registry_storage.set(await self.index.total_bytes())

    async def collect(self, *, dry_run: bool = False, keep_seconds: float = gc.KEEP_SECONDS) -> Collected:
        """Take away what nobody needs; one collection at a time."""
        async with self._collecting:
            found = await gc.collect(self.index, self.blobs, self.holders, dry_run=dry_run, keep_seconds=keep_seconds)
        if not dry_run:
            await self.stored()
        return found

    async def _collect_regularly(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            try:
                await self.collect()
            except Exception:
                log.exception("the garbage collection failed; nothing is lost, it is tried again")

    async def _sweep(self) -> None:
        while True:
            try:
                if swept := await self.blobs.sweep(UPLOAD_SECONDS):
                    log.info("swept %d abandoned uploads", swept)
            except OSError as error:
                log.warning("cannot sweep uploads: %s", error)
            await asyncio.sleep(SWEEP_SECONDS)
