"""A registry whose images a test makes without HTTP, and collections of it by the rule and at the time it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest, canonical_json
from registry.gc import Collected, Collection, Preview
from registry.rules import Rule
from registry.service import Registry

CONFIG = b"{}"
NOW = Rule(untagged_days=0)  # what nothing keeps goes at once


@dataclass
class Held:
    """What the gateway would say."""

    digests: dict[str, list[str]] = field(default_factory=dict)

    async def held(self) -> Mapping[str, Sequence[str]]:
        return {f"any@{digest}": names for digest, names in self.digests.items()}


@dataclass
class Bench:
    registry: Registry
    holders: Held

    async def blob(self, repository: str, data: bytes) -> Digest:
        """As an upload does it."""
        digest, blobs, index = Digest.of(data), self.registry.blobs, self.registry.index

        async def once() -> AsyncIterator[bytes]:
            yield data

        upload = await blobs.begin(repository)
        async with upload.lock, index.turns.of(digest):
            await upload.append(once())
            await index.add_blob(repository, digest, await upload.commit(digest))
        upload.end()
        return digest

    async def image(self, repository: str, layer: bytes, *tags: str, **more: Any) -> str:
        config, layers = await self.blob(repository, CONFIG), [await self.blob(repository, layer)]
        value = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": Descriptor(media_types.OCI_CONFIG, config, len(CONFIG)).to_json(),
            "layers": [Descriptor(media_types.OCI_LAYER, digest, len(layer)).to_json() for digest in layers],
            **more,
        }
        return await self.put(repository, value, *tags)

    async def list_of(self, repository: str, entries: Sequence[str], *tags: str, **more: Any) -> str:
        """An index."""
        value = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_INDEX,
            "manifests": [reference(digest) for digest in entries],
            **more,
        }
        return await self.put(repository, value, *tags)

    async def put(self, repository: str, value: dict[str, Any], *tags: str) -> str:
        manifest = Manifest.parse(canonical_json(value))
        assert await self.registry.index.put_manifest(repository, manifest, tags) is None
        return str(manifest.digest)

    def collection(self, rule: Rule = NOW, **options: Any) -> Collection:
        registry = self.registry
        return Collection(
            registry.index, registry.blobs, self.holders, lambda _: rule, **{"stray_seconds": 0.0, **options}
        )

    async def collect(self, rule: Rule = NOW, **options: Any) -> Collected:
        return await self.collection(rule, **options).run()

    async def preview(self, rule: Rule = NOW, **options: Any) -> Preview:
        return await self.collection(rule, **options).preview()

    async def here(self, repository: str, digest: str) -> bool:
        return await self.registry.index.manifest(repository, digest) is not None

    async def tags(self, repository: str) -> list[str]:
        return await self.registry.index.tag_names(repository, "", 1000) or []

    async def file(self, data: bytes) -> bool:
        return await self.registry.blobs.size(Digest.of(data)) is not None

    async def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        async with self.registry.index.database.read() as tx:
            return [tuple(row) for row in await tx.exec_driver_sql(query, values)]

    async def change(self, statement: str, *values: object) -> None:
        async with self.registry.index.database.write() as tx:
            await tx.exec_driver_sql(statement, values)


def reference(digest: str) -> dict[str, Any]:
    """A descriptor of a manifest."""
    return {"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": 100}


@asynccontextmanager
async def opened(data: Path) -> AsyncIterator[Bench]:
    url, holders = f"sqlite+aiosqlite:///{data / 'registry.db'}", Held()
    registry = await Registry.open(data, url, accounts=None, metrics=Metrics("test"), holders=holders)
    try:
        yield Bench(registry, holders)
    finally:
        await registry.close()
