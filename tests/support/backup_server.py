"""The parts of a server that a backup is made of, without listeners: both databases, the registry, and `Backups`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert

from faas.backup.manifest import Manifest
from faas.backup.target import Target
from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest as Image
from faas.state.session import Database
from faas.state.tables import functions
from gateway.backup import Backup, Backups
from registry.backup import BackupSource
from registry.service import Registry


@dataclass
class BackedUp:
    """`data` is its folder."""

    data: Path
    gateway: Database
    registry: Registry
    backups: Backups

    async def function(self, name: str) -> None:
        async with self.gateway.write() as tx:
            row = {"namespace": "default", "name": name, "created_at": 1.0, "updated_at": 1.0}
            await tx.execute(insert(functions).values(row))

    async def blob(self, repository: str, content: bytes) -> Descriptor:
        upload, digest = await self.registry.blobs.begin(repository), Digest.of(content)
        async with upload.lock:
            await upload.commit(digest, content)
            upload.end()
        await self.registry.index.add_blob(repository, digest, len(content))
        return Descriptor(media_types.OCI_LAYER, digest, len(content))

    async def image(self, repository: str, tag: str, content: bytes) -> Image:
        config = await self.blob(repository, b'{"architecture":"amd64","os":"linux"}')
        config = Descriptor(media_types.OCI_CONFIG, config.digest, config.size)
        made = Image.image(config, [await self.blob(repository, content)])
        assert await self.registry.index.put_manifest(repository, made, [tag]) is None
        return made

    async def backup(self, target: Target) -> tuple[Path, Manifest, int]:
        """As `faas backup` does it, without HTTP: where it is, what is in it, and how many blobs came."""
        backup = await self.backups.begin()
        try:
            came = await self.fetch(backup, target)
            return await target.finish(backup.manifest), backup.manifest, came
        finally:
            target.close()
            await self.backups.end(backup.id)

    async def fetch(self, backup: Backup, target: Target, most: int = 1_000_000) -> int:
        """Files, and `most` blobs of those that it lacks; how many."""
        for entry in backup.manifest.files:
            await target.file(entry, self.backups.chunks(backup, self.backups.file(backup, entry.name)))
        lacking = target.lacks(backup.manifest.blobs)[:most]
        for blob in lacking:
            await target.blob(blob, self.backups.chunks(backup, self.backups.blob(backup, str(blob.digest))))
        return len(lacking)


@asynccontextmanager
async def backed_up(data: Path, *, idle_seconds: float = 60.0) -> AsyncIterator[BackedUp]:
    await asyncio.to_thread(data.mkdir, exist_ok=True)
    gateway = await Database.open(f"sqlite+aiosqlite:///{data / 'faas.db'}")
    url = f"sqlite+aiosqlite:///{data / 'registry.db'}"
    registry = await Registry.open(data, url, accounts=None, metrics=Metrics("test"))
    backups = Backups(gateway, BackupSource(registry), data, "0.0-test", idle_seconds=idle_seconds)
    await backups.open()
    try:
        yield BackedUp(data, gateway, registry, backups)
    finally:
        await backups.close()
        await registry.close()
        await gateway.close()
