"""Garbage collection while the registry serves: what is needed stays, what is not goes, and a push never races it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest, canonical_json
from registry.gc import Collected, Collection
from registry.index import index as index_module
from registry.rules import Rule
from registry.service import Registry

CONFIG = b"{}"
NOW = Rule(untagged_days=0)  # what nothing keeps goes at once


@dataclass
class Held:
    """What the gateway would say."""

    digests: dict[str, list[str]] = field(default_factory=dict)

    async def held(self) -> Mapping[str, Sequence[str]]:
        return self.digests


@dataclass
class Bench:
    registry: Registry
    holders: Held

    async def blob(self, repository: str, data: bytes) -> Digest:
        """As an upload does it."""
        digest, blobs, index = Digest.of(data), self.registry.blobs, self.registry.index

        async def once() -> AsyncIterator[bytes]:
            yield data

        upload = await blobs.begin()
        async with upload.lock, index.turns.of(digest):
            await upload.append(once())
            await index.add_blob(repository, digest, await upload.commit(digest))
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

    async def preview(self, rule: Rule = NOW, **options: Any) -> Collected:
        return (await self.collection(rule, **options).preview()).counts

    async def here(self, repository: str, digest: str) -> bool:
        return await self.registry.index.manifest(repository, digest) is not None

    async def file(self, data: bytes) -> bool:
        return await self.registry.blobs.size(Digest.of(data)) is not None


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Leases are over at once, but where a test says otherwise."""
    monkeypatch.setattr(index_module, "LEASE_SECONDS", -1.0)
    async with opened(tmp_path) as bench:
        yield bench


@asynccontextmanager
async def opened(data: Path) -> AsyncIterator[Bench]:
    url, holders = f"sqlite+aiosqlite:///{data / 'registry.db'}", Held()
    registry = await Registry.open(data, url, authenticator=None, metrics=Metrics("test"), holders=holders)
    try:
        yield Bench(registry, holders)
    finally:
        await registry.close()


async def test_a_moved_tag_leaves_what_nobody_names_and_the_rest_stays(bench: Bench) -> None:
    old = await bench.image("a", b"old layer", "latest")
    new = await bench.image("a", b"new layer", "latest")
    assert await bench.preview() == Collected(manifests=1, blobs=1, bytes=len(b"old layer"))
    assert await bench.here("a", old)
    assert await bench.collect() == Collected(manifests=1, blobs=1, bytes=len(b"old layer"))
    assert not await bench.here("a", old)
    assert not await bench.file(b"old layer")
    assert await bench.here("a", new)
    assert await bench.file(b"new layer")
    assert await bench.file(CONFIG)
    assert await bench.collect() == Collected()


async def test_what_is_deployed_stays_without_a_tag_also_below_an_index(bench: Bench) -> None:
    platform = await bench.image("a", b"one platform")
    entry = {"mediaType": media_types.OCI_MANIFEST, "digest": platform, "size": 100}
    index = await bench.put("a", {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [entry]})
    bench.holders.digests[index] = ["hello@v1"]
    await bench.collect()
    assert await bench.here("a", index)
    assert await bench.here("a", platform)
    assert await bench.file(b"one platform")
    bench.holders.digests.clear()
    assert (await bench.collect()).manifests == 2
    assert not await bench.file(b"one platform")


async def test_a_signature_lives_as_long_as_what_it_signs(bench: Bench) -> None:
    subject = await bench.image("a", b"signed", "v1")
    descriptor = {"mediaType": media_types.OCI_MANIFEST, "digest": subject, "size": 100}
    signature = await bench.image("a", b"signature", subject=descriptor)
    await bench.collect()
    assert await bench.here("a", signature)
    await bench.registry.index.remove_tag("a", "v1")
    await bench.collect()
    assert not await bench.here("a", signature)


async def test_a_blob_of_two_repositories_stays_for_the_one_that_needs_it(bench: Bench) -> None:
    await bench.image("a", b"shared", "v1")
    await bench.image("b", b"shared", "v1")
    await bench.registry.index.remove_tag("a", "v1")
    await bench.collect()
    assert await bench.file(b"shared")
    assert await bench.registry.index.blob_size("a", Digest.of(b"shared")) is None
    assert await bench.registry.index.blob_size("b", Digest.of(b"shared")) == 6


async def test_young_manifests_and_leased_blobs_are_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "LEASE_SECONDS", 3600.0)
    await bench.image("a", b"young")
    await bench.blob("a", b"its manifest is on its way")
    assert await bench.collect(Rule(untagged_days=1)) == Collected()
    assert await bench.file(b"its manifest is on its way")


async def test_a_client_that_was_told_a_blob_is_here_finds_it_when_it_pushes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A HEAD that answered 200 is a promise: the client will not bring the bytes."""
    digest = await bench.blob("a", b"promised")
    monkeypatch.setattr(index_module, "LEASE_SECONDS", 3600.0)
    await bench.registry.index.lease("a", digest)
    await bench.collect()
    assert await bench.file(b"promised")


async def test_where_nobody_can_say_what_is_deployed_nothing_is_deleted(bench: Bench) -> None:
    await bench.image("a", b"maybe deployed")

    async def fails() -> Mapping[str, Sequence[str]]:
        raise RuntimeError("the gateway does not answer")

    bench.holders.held = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await bench.collect()
    assert await bench.file(b"maybe deployed")


async def test_a_file_without_a_row_is_swept_once_it_is_old(bench: Bench) -> None:
    path = bench.registry.blobs.path(Digest.of(b"stray"))
    path.write_bytes(b"stray")
    assert (await bench.collect(stray_seconds=3600)).files == 0
    assert (await bench.preview()).files == 1
    assert path.exists()
    await asyncio.sleep(0.01)
    assert (await bench.collect()).files == 1
    assert not path.exists()


async def test_a_collection_that_was_cut_off_is_ended_by_the_next(tmp_path: Path, bench: Bench) -> None:
    """The row said `leaving`, and the file went or did not go."""
    for data, file_went in ((b"gone already", True), (b"still here", False)):
        digest = await bench.blob("a", data)
        async with bench.registry.index.database.write() as tx:
            await tx.exec_driver_sql("DELETE FROM repository_blobs WHERE digest = ?", (str(digest),))
            await tx.exec_driver_sql("UPDATE blobs SET leaving = 1 WHERE digest = ?", (str(digest),))
        if file_went:
            bench.registry.blobs.path(digest).unlink()
    assert (await bench.collect()).blobs == 2
    assert not await bench.file(b"still here")
    assert await bench.registry.index.total_bytes() == 0


async def test_pushes_and_collections_side_by_side_lose_nothing_that_was_answered(bench: Bench) -> None:
    """The same few blobs come and go in three repositories while collections run: a row always has its file."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    layers = [os.urandom(100) for _ in range(6)]
    stop = asyncio.Event()
    collections = 0

    async def collecting() -> None:
        nonlocal collections
        while not stop.is_set():
            await bench.collect()
            collections += 1

    async def pushing(repository: str) -> None:
        for _ in range(40):
            if dice.random() < 0.5:
                await bench.registry.index.remove_tag(repository, "t")
            await push(repository, dice.choice(layers))

    async def push(repository: str, layer: bytes) -> None:
        """A manifest that comes after its blobs were collected is refused by name, and pushed once more."""
        for _ in range(50):
            config, blob = await bench.blob(repository, CONFIG), await bench.blob(repository, layer)
            value = {
                "schemaVersion": 2,
                "mediaType": media_types.OCI_MANIFEST,
                "config": Descriptor(media_types.OCI_CONFIG, config, len(CONFIG)).to_json(),
                "layers": [Descriptor(media_types.OCI_LAYER, blob, len(layer)).to_json()],
            }
            manifest = Manifest.parse(canonical_json(value))
            if await bench.registry.index.put_manifest(repository, manifest, ["t"]) is None:
                assert await bench.registry.blobs.missing([config, blob]) is None
                return
        pytest.fail("never accepted")

    collector = asyncio.create_task(collecting())
    await asyncio.gather(*(pushing(name) for name in ("a", "b", "c")))
    stop.set()
    await collector
    assert collections > 3
    async with bench.registry.index.database.read() as tx:
        rows = (await tx.exec_driver_sql("SELECT digest FROM blobs WHERE NOT leaving")).scalars()
        assert await bench.registry.blobs.missing([Digest.parse(str(row)) for row in rows]) is None
        tags = (await tx.exec_driver_sql("SELECT repository, digest FROM tags")).all()
    for repository, digest in tags:
        stored = await bench.registry.index.manifest(repository, digest)
        assert stored is not None
        for layer in json.loads(stored.raw)["layers"]:
            assert await bench.registry.blobs.size(Digest.parse(layer["digest"])) == 100
