"""The scrub finds what went bad on the disk, takes it out of service, and a push mends it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.digest import Digest
from registry import scrub as scrub_module
from registry.scrub import AGAIN_SECONDS, WEEK_SECONDS, Act, judge
from registry.service import Registry
from registry.storage import filesystem
from registry.storage.base import Condition
from tests.conftest import SOAK
from tests.support.registry import RegistryProcess, registry_process

PUSHED = {"Content-Type": media_types.OCI_MANIFEST}


def scrubbed(registry: RegistryProcess) -> Any:
    """Everything checked, from now on."""
    assert registry.call("POST", "/v2/_faas/scrub").status == 202
    deadline = time.monotonic() + 30
    while True:
        found = registry.call("GET", "/v2/_faas/scrub").json()
        if found["pass"]["ended_at"] is not None:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


def file_of(registry: RegistryProcess, digest: str) -> Path:
    algorithm, _, name = digest.partition(":")
    return registry.data / "blobs" / algorithm / name[:2] / name


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def test_every_damaged_blob_is_found_quarantined_and_mended_by_a_push(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with registry_process(tmp_path / "registry") as registry:
        layers = [dice.randbytes(dice.randint(1, 100_000)) for _ in range(120 if SOAK else 8)]
        pushed = [registry.push_image("team/app", f"v{n}", layer) for n, layer in enumerate(layers)]
        bad = dice.sample(range(len(layers)), 100 if SOAK else 3)
        for number, index in enumerate(bad):
            path = file_of(registry, str(Digest.of(layers[index])))
            if number % 3 == 0:
                flip(path, dice)
            elif number % 3 == 1:
                os.truncate(path, dice.randrange(len(layers[index])))
            else:
                path.unlink()
        found = scrubbed(registry)
        assert found["pass"]["damaged"] == len(bad)
        assert found["pass"]["checked_blobs"] == len(layers) + 1
        assert {entry["digest"] for entry in found["damaged"]} == {str(Digest.of(layers[index])) for index in bad}
        by_digest = {entry["digest"]: entry["images"] for entry in found["damaged"]}
        for index in bad:
            digest = str(Digest.of(layers[index]))
            image = {"repository": "team/app", "digest": pushed[index][0], "tags": [f"v{index}"]}
            assert by_digest[digest] == [image]
            for method in ("HEAD", "GET"):
                assert registry.call(method, f"/v2/team/app/blobs/{digest}").status == 404
        kept = sorted(file["bytes"] for file in found["quarantine"])
        assert len(kept) == sum(number % 3 != 2 for number in range(len(bad)))
        for index, layer in enumerate(layers):
            if index not in bad:
                assert registry.call("GET", f"/v2/team/app/blobs/{Digest.of(layer)}").body == layer
        for index in bad:  # as a client does it: HEAD says 404, so that it uploads
            again, raw = registry.push_image("team/app", f"v{index}", layers[index])
            assert (again, raw) == pushed[index]
            assert registry.call("GET", f"/v2/team/app/blobs/{Digest.of(layers[index])}").body == layers[index]
        assert not registry.call("GET", "/v2/_faas/scrub").json()["damaged"]
        assert scrubbed(registry)["pass"]["damaged"] == 0
        assert len(registry.call("GET", "/v2/_faas/scrub").json()["quarantine"]) == len(kept)


def test_a_mended_blob_serves_every_repository_that_needs_it(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry") as registry:
        layer = os.urandom(1000)
        for name in ("a", "b"):
            registry.push_image(name, "v1", layer)
        index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}
        digest, raw = registry.push_image("b", "v2", layer)
        index["manifests"] = [{"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": len(raw)}]
        reply = registry.call(
            "PUT", "/v2/b/manifests/all", json.dumps(index).encode(), {"Content-Type": media_types.OCI_INDEX}
        )
        assert reply.status == 201
        flip(file_of(registry, str(Digest.of(layer))), random.Random(1))
        (entry,) = scrubbed(registry)["damaged"]
        tags = {(image["repository"], tag) for image in entry["images"] for tag in image["tags"]}
        assert tags == {("a", "v1"), ("b", "v1"), ("b", "v2"), ("b", "all")}
        registry.push_blob("a", layer)
        assert registry.call("GET", f"/v2/b/blobs/{Digest.of(layer)}").body == layer


def test_a_damaged_manifest_is_never_served_and_a_push_mends_it(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry") as registry:
        digest, raw = registry.push_image("team/app", "v1", b"layer")
        database = sqlite3.connect(registry.data / "registry.db")
        with database:
            broken = raw.replace(b'"size": 5', b'"size": 4')
            database.execute("UPDATE manifests SET raw = ?", (broken,))
        database.close()
        for reference in ("v1", digest):
            assert registry.call("GET", f"/v2/team/app/manifests/{reference}").code == "MANIFEST_UNKNOWN"
        found = scrubbed(registry)
        assert found["damaged_manifests"] == [{"repository": "team/app", "digest": digest, "tags": ["v1"]}]
        assert registry.call("PUT", "/v2/team/app/manifests/v1", raw, PUSHED).status == 201
        assert registry.call("GET", f"/v2/team/app/manifests/{digest}").body == raw
        assert not registry.call("GET", "/v2/_faas/scrub").json()["damaged_manifests"]


def test_the_scrub_is_for_administrators(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry", "basic") as registry:
        for method in ("GET", "POST"):
            assert registry.call(method, "/v2/_faas/scrub", login=False).status == 401


def test_what_cannot_be_read_stays_for_an_hour_and_nothing_else_does() -> None:
    now = 1_000_000.0
    assert judge(Condition.WHOLE, now - 10, now) is Act.KEEP
    assert judge(Condition.DAMAGED, None, now) is Act.QUARANTINE
    assert judge(Condition.UNREADABLE, None, now) is Act.SUSPECT
    assert judge(Condition.UNREADABLE, now - AGAIN_SECONDS + 1, now) is Act.SUSPECT
    assert judge(Condition.UNREADABLE, now - AGAIN_SECONDS, now) is Act.QUARANTINE


class Held:
    def __init__(self, *digests: str) -> None:
        self.digests = digests

    async def held(self) -> Mapping[str, Sequence[str]]:
        return {f"any@{digest}": ["hello v1"] for digest in self.digests}


@pytest.fixture
async def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Registry]:
    """One whose own scrub sleeps: the test runs its rounds."""

    async def nothing(self: scrub_module.Scrub) -> None: ...

    monkeypatch.setattr(scrub_module.Scrub, "run", nothing)
    async with opened(tmp_path) as running:
        yield running


class opened:
    def __init__(self, data: Path, holders: Held | None = None) -> None:
        self.data, self.holders = data, holders

    async def __aenter__(self) -> Registry:
        url = f"sqlite+aiosqlite:///{self.data / 'registry.db'}"
        self.registry = await Registry.open(
            self.data, url, accounts=None, metrics=Metrics("test"), holders=self.holders
        )
        return self.registry

    async def __aexit__(self, *_: object) -> None:
        await self.registry.close()


async def store(registry: Registry, data: bytes) -> Digest:
    digest = Digest.of(data)

    async def once() -> AsyncIterator[bytes]:
        yield data

    upload = await registry.blobs.begin("app")
    async with upload.lock, registry.index.turns.of(digest):
        await upload.append(once())
        await registry.index.add_blob("team/app", digest, await upload.commit(digest))
    upload.end()
    return digest


def damaged_gauge(registry: Registry) -> float:
    (family,) = registry.metrics.registry_damaged.collect()
    return float(family.samples[0].value)


async def test_each_blob_is_checked_once_a_week_the_oldest_first(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Digest] = []
    real = registry.blobs.check

    async def noted(digest: Digest, size: int, pace: Any) -> Condition:
        checked.append(digest)
        return await real(digest, size, pace)

    monkeypatch.setattr(registry.blobs, "check", noted)
    first, second = await store(registry, b"first"), await store(registry, b"second")
    now = time.time()
    assert await registry.scrub.round(now) is not None  # the manifests
    assert not checked
    assert await registry.scrub.round(now + 60) is None
    later = await registry.scrub.round(now + WEEK_SECONDS + 60)
    assert later is not None
    assert checked == [first, second]
    assert (later.checked_blobs, later.checked_bytes, later.damaged) == (2, 11, 0)
    checked.clear()
    await registry.scrub.round(now + 60)
    assert not checked


async def test_a_restart_goes_on_where_it_was(tmp_path: Path, registry: Registry) -> None:
    digests = [await store(registry, bytes([n])) for n in range(5)]
    async with registry.index.database.write() as tx:
        await tx.exec_driver_sql("UPDATE blobs SET checked_at = 1")
        await tx.exec_driver_sql("UPDATE blobs SET checked_at = ? WHERE digest = ?", (time.time(), str(digests[0])))
    found = await registry.scrub.round()
    assert found is not None
    assert found.checked_blobs == 4


async def test_an_unreadable_blob_is_told_at_once_and_comes_back_by_itself(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await store(registry, b"on a bad cable")
    fails = True

    def hash_piece(file: int, offset: int, hasher: Any) -> int:
        if fails:
            raise OSError(5, "Input/output error")
        return real(file, offset, hasher)

    real = filesystem._hash_piece
    monkeypatch.setattr(filesystem, "_hash_piece", hash_piece)
    registry.scrub.ask()
    await registry.scrub.round()
    assert [entry["digest"] for entry in (await registry.scrub.status())["damaged"]] == [str(digest)]
    assert damaged_gauge(registry) == 1
    assert registry.blobs.path(digest).exists()
    assert await registry.scrub.damaged() == [str(digest)]
    fails = False
    await registry.scrub.round(time.time() + AGAIN_SECONDS + 1)
    assert not (await registry.scrub.status())["damaged"]
    assert damaged_gauge(registry) == 0


async def test_a_blob_that_stays_unreadable_goes_after_an_hour(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await store(registry, b"on a bad disk")

    def hash_piece(file: int, offset: int, hasher: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(filesystem, "_hash_piece", hash_piece)
    registry.scrub.ask()
    await registry.scrub.round()
    async with registry.index.database.write() as tx:  # an hour passes
        await tx.exec_driver_sql("UPDATE blobs SET damaged_at = damaged_at - ?", (AGAIN_SECONDS,))
    registry.scrub.ask()
    await registry.scrub.round()
    assert await registry.blobs.size(digest) is None
    (kept,) = await registry.blobs.quarantined()
    assert kept.bytes == len(b"on a bad disk")


async def test_a_blob_that_was_mended_while_it_was_read_stays(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reading saw the old file; the second, in the blob's turn, sees the new one."""
    digest = await store(registry, b"about to be mended")
    path = registry.blobs.path(digest)
    path.write_bytes(b"about to be mendeD")
    real = registry.blobs.check

    async def meanwhile(digest: Digest, size: int, pace: Any) -> Condition:
        found = await real(digest, size, pace)
        path.write_bytes(b"about to be mended")
        return found

    monkeypatch.setattr(registry.blobs, "check", meanwhile)
    registry.scrub.ask()
    found = await registry.scrub.round()
    assert found is not None
    assert found.damaged == 0
    assert path.exists()


async def test_a_deployed_image_is_quarantined_stays_known_and_is_mended(tmp_path: Path) -> None:
    with registry_process(tmp_path) as process:
        manifest, raw = process.push_image("hello", "v1", b"deployed layer")
    async with opened(tmp_path, Held(manifest)) as registry:
        digest = Digest.of(b"deployed layer")
        registry.blobs.path(digest).write_bytes(b"deployed laXer")
        registry.scrub.ask()
        async with asyncio.timeout(10):
            while registry.scrub.last is None or registry.scrub.last.ended_at is None:
                await registry.scrub.status()
        assert await registry.blobs.size(digest) is None
        await registry.collect()
        stored = await registry.index.manifest("hello", manifest)
        assert stored is not None
        assert stored.raw == raw
        await store(registry, b"deployed layer")
        assert await registry.blobs.size(digest) == 14
        assert not (await registry.scrub.status())["damaged"]


async def test_the_pace_is_kept(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "BYTES_PER_SECOND", 2_000_000)
    await store(registry, os.urandom(1_000_000))
    began = time.monotonic()
    await registry.scrub.round(time.time() + WEEK_SECONDS + 1)
    assert time.monotonic() - began > 0.4
