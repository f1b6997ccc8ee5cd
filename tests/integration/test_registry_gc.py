"""Garbage collection while the registry serves: what is needed stays, what is not goes, and a push never races it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from faas.errors import NotFound
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest, canonical_json
from registry import service
from registry.app import create_app
from registry.gc import Collected
from registry.index import expiry, garbage
from registry.index import index as index_module
from registry.rules import DAY, Rule
from registry.source import LocalImageSource
from tests.conftest import SOAK
from tests.support.control import until
from tests.support.garbage import CONFIG, Bench, opened, reference
from tests.support.registry import ROOT


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Leases are over at once, but where a test says otherwise."""
    monkeypatch.setattr(index_module, "LEASE_SECONDS", -1.0)
    async with opened(tmp_path) as bench:
        yield bench


async def test_a_moved_tag_leaves_what_nobody_names_and_the_rest_stays(bench: Bench) -> None:
    old = await bench.image("a", b"old layer", "latest")
    new = await bench.image("a", b"new layer", "latest")
    assert (await bench.preview()).counts == Collected(manifests=1, blobs=1, bytes=len(b"old layer"))
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
    index = await bench.list_of("a", [platform])
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
    signature = await bench.image("a", b"signature", subject=reference(subject))
    of_the_signature = await bench.image("a", b"when it was made", subject=reference(signature))
    await bench.collect()
    assert await bench.here("a", of_the_signature)
    await bench.registry.index.remove_tag("a", "v1")
    assert (await bench.collect()).manifests == 3


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
    assert (await bench.preview()).counts.files == 1
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


async def test_the_time_without_a_tag_begins_when_the_last_tag_goes(bench: Bench) -> None:
    """Not when it was pushed: what was `latest` for a year does not go the hour after something else is."""
    moved = await bench.image("a", b"latest for long", "latest")
    deleted = await bench.image("a", b"deleted", "v1")
    await bench.change(
        "UPDATE manifests SET created_at = created_at - ?, untagged_at = untagged_at - ?", *[365 * DAY] * 2
    )
    await bench.image("a", b"the new one", "latest")
    await bench.registry.index.remove_tag("a", "v1")
    now = time.time()
    assert (await bench.collect(Rule(), now=now + 29 * DAY)).manifests == 0
    assert await bench.here("a", moved)
    assert await bench.here("a", deleted)
    assert (await bench.collect(Rule(), now=now + 31 * DAY)).manifests == 2


async def test_what_is_pushed_again_is_young_again(bench: Bench) -> None:
    """A client that pushes the platforms of an index counts on them, whether or not they were there."""
    await bench.image("a", b"a platform")
    await bench.change("UPDATE manifests SET untagged_at = 0")
    platform = await bench.image("a", b"a platform")
    assert (await bench.collect(Rule())).manifests == 0
    await bench.list_of("a", [platform], "v1")
    assert (await bench.collect()).manifests == 0


async def test_what_a_client_was_told_is_here_can_be_named_afterwards(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old image without a tag: a HEAD for it, or a deploy that has found it, is a promise."""
    platform = await bench.image("a", b"a platform")
    forgotten = await bench.image("a", b"nobody asked for this one")
    await bench.change("UPDATE manifests SET untagged_at = 0, leased_until = 0")
    monkeypatch.setattr(index_module, "LEASE_SECONDS", 3600.0)
    async with TestClient(TestServer(create_app(bench.registry))) as client:
        async with client.head(f"/v2/a/manifests/{platform}") as head:
            assert head.status == 200
        assert (await bench.collect()).manifests == 1
        named = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [reference(platform)]}
        headers = {"Content-Type": media_types.OCI_INDEX}
        async with client.put("/v2/a/manifests/v1", data=json.dumps(named), headers=headers) as put:
            assert put.status == 201
        named["manifests"] = [reference(forgotten)]
        async with client.put("/v2/a/manifests/v2", data=json.dumps(named), headers=headers) as put:
            assert put.status == 400
            error = (await put.json())["errors"][0]
    assert (error["code"], error["detail"]) == ("MANIFEST_BLOB_UNKNOWN", forgotten)


async def test_a_deploy_that_has_found_its_image_finds_it_until_it_says_so_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the tag's digest and the revision's row nobody holds the image, however old it is."""
    digest = await bench.image("a", b"deployed from long ago")
    await bench.change("UPDATE manifests SET untagged_at = 0, leased_until = 0")
    monkeypatch.setattr(index_module, "LEASE_SECONDS", 3600.0)
    manifest = await LocalImageSource(bench.registry).manifest(f"a@{digest}", "amd64")
    assert await bench.collect() == Collected()
    assert all([await bench.registry.blobs.size(blob.digest) == blob.size for blob in manifest.blobs])
    assert (await bench.collect(now=time.time() + 3601)).manifests == 1


async def test_a_deploy_that_comes_while_a_delete_asks_who_needs_the_image_finds_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go live without its image: nobody said yet that it is needed when that was asked."""
    digest = await bench.image("a", b"deployed and deleted", "v1")
    monkeypatch.setattr(index_module, "LEASE_SECONDS", 3600.0)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def held() -> Mapping[str, Sequence[str]]:
        asked.set()
        await answered.wait()
        return {}

    monkeypatch.setattr(bench.holders, "held", held)
    async with TestClient(TestServer(create_app(bench.registry))) as client, asyncio.TaskGroup() as tasks:
        deleting = tasks.create_task(client.delete(f"/v2/a/manifests/{digest}"))
        await asked.wait()
        deploying = asyncio.ensure_future(LocalImageSource(bench.registry).manifest(f"a@{digest}", "amd64"))
        await asyncio.wait((deploying,), timeout=0.2)
        answered.set()
        assert (await deleting).status == 202
        with pytest.raises(NotFound):
            await deploying


async def test_a_registry_that_starts_anew_collects_before_an_hour_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "LEASE_SECONDS", -1.0)
    async with opened(tmp_path) as bench:
        await bench.image("a", b"forgotten")
        await bench.change("UPDATE manifests SET untagged_at = 0")
    monkeypatch.setattr(service, "FIRST_SECONDS", (0.0, 0.1))
    async with opened(tmp_path) as bench:
        file = bench.registry.blobs.path(Digest.of(b"forgotten"))
        assert file.exists()
        await until(lambda: not file.exists())


async def test_an_index_about_one_of_its_own_entries_keeps_neither(bench: Bench) -> None:
    """Each lives by the other: only a way from a tag counts."""
    image = await bench.image("a", b"an entry, and what the index is about")
    about = await bench.list_of("a", [image], subject=reference(image))
    await bench.list_of("a", [about], "v1")
    assert (await bench.collect()).manifests == 0
    await bench.registry.index.remove_tag("a", "v1")
    assert (await bench.collect()).manifests == 3


async def test_more_than_one_transaction_reaches_goes_with_a_later_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand dead indexes over one image: who may keep it is not all looked up at once."""
    monkeypatch.setattr(garbage, "ABOVE", 4)
    image = await bench.image("a", b"in many indexes")
    for number in range(10):
        await bench.list_of("a", [image], annotations={"n": str(number)})
    kept = await bench.list_of("a", [image], "v1", annotations={"n": "kept"})
    for _ in range(12):
        await bench.collect()
    assert {row[0] for row in await bench.ask("SELECT digest FROM manifests")} == {image, kept}
    await bench.registry.index.remove_tag("a", "v1")
    for _ in range(2):
        await bench.collect()
    assert await bench.ask("SELECT digest FROM manifests") == []


async def test_exactly_what_is_reached_stays_in_repositories_of_any_shape(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Indexes, subjects, tags, holders, leases and ages at random, in pages of three, against the plain definition."""
    for module in (garbage, expiry):
        monkeypatch.setattr(module, "AT_ONCE", 3)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    now = time.time()
    for repository in ("a", "b", "c"):
        await bench.blob(repository, CONFIG)
        names = [f"sha256:{dice.randbytes(32).hex()}" for _ in range(40)]
        below: dict[str, set[str]] = {name: set() for name in names}  # what lives while this does
        roots = set()
        for position, name in enumerate(names):
            entries = dice.sample(names[:position], min(position, dice.choice([0, 0, 1, 2])))
            subject = dice.choice(names) if dice.random() < 0.3 else ""
            below[name] |= set(entries)
            if subject:
                below[subject].add(name)
            age, lease = dice.choice([1, 29, 31, 400]), dice.choice([-1, -1, -1, 5])
            if age < 30 and dice.random() < 0.8:
                age = 31
            if age < 30 or lease > 0:
                roots.add(name)
            await bench.change(
                "INSERT INTO manifests VALUES (:repository, ?, 'm', x'00', ?, '', '{}', ?, ?, ?)".replace(
                    ":repository", f"'{repository}'"
                ),
                name, subject, now - 500 * DAY, now + lease * DAY, now - age * DAY,
            )  # fmt: skip
            for entry in entries:
                await bench.change("INSERT INTO children VALUES (?, ?, ?)", repository, name, entry)
        for tag, name in enumerate(dice.sample(names, 4)):
            await bench.change("INSERT INTO tags VALUES (?, ?, ?, ?, NULL)", repository, f"t{tag}", name, now)
            roots.add(name)
        for name in dice.sample(names, 2):
            bench.holders.digests[name] = ["hello@v1"]
            roots.add(name)
        living, reached = set(roots), list(roots)
        while reached:
            more = below[reached.pop()] - living
            living |= more
            reached += more
        would = await bench.preview(Rule(), namespace=None, now=now)
        await bench.collect(Rule(), now=now)
        left = {row[0] for row in await bench.ask("SELECT digest FROM manifests WHERE repository = ?", repository)}
        assert left == living
        assert {gone.digest for gone in would.manifests} == set(names) - living
        edges = await bench.ask("SELECT manifest FROM children WHERE repository = ?", repository)
        assert {row[0] for row in edges} <= living


async def test_an_empty_repository_leaves_the_catalog_and_an_upload_on_its_way_brings_it_back(bench: Bench) -> None:
    digest = await bench.image("gone", b"only layer", "v1")
    await bench.image("stays", b"another layer", "v1")
    async with TestClient(TestServer(create_app(bench.registry))) as client:
        async with client.post("/v2/gone/blobs/uploads/") as begun:
            location = begun.headers["Location"]
        await bench.registry.index.remove_manifest("gone", Digest.parse(digest))
        async with client.get("/v2/_catalog") as catalog:
            assert (await catalog.json())["repositories"] == ["gone", "stays"]
        found = await bench.collect()
        assert (found.repositories, found.blobs) == (1, 1)
        async with client.get("/v2/_catalog") as catalog:
            assert (await catalog.json())["repositories"] == ["stays"]
        async with client.get("/v2/gone/tags/list") as tags:
            assert tags.status == 404
        data = b"the upload goes on"
        async with client.put(location, params={"digest": str(Digest.of(data))}, data=data) as done:
            assert done.status == 201
        async with client.get("/v2/_catalog") as catalog:
            assert (await catalog.json())["repositories"] == ["gone", "stays"]


async def test_a_namespaces_collection_leaves_the_others_alone(bench: Bench) -> None:
    for repository in ("team/app", "other/app", "app"):
        await bench.image(repository, repository.encode())
    assert (await bench.preview(namespace="team")).counts.manifests == 1
    found = await bench.collect(namespace="team")
    assert (found.manifests, found.repositories, found.blobs) == (1, 1, 1)
    assert (await bench.collect()).manifests == 2


async def test_a_preview_names_what_goes_and_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    """Not a row, and not a file."""
    await bench.image("a", b"old layer", "latest")
    old = await bench.image("a", b"older layer")
    await bench.image("a", b"new layer", "latest")
    tables = ("repositories", "blobs", "repository_blobs", "manifests", "children", "tags")
    before = [await bench.ask(f"SELECT * FROM {table}") for table in tables]
    files = sorted(path.name for path in (tmp_path / "blobs").rglob("*"))
    found = await bench.preview()
    assert (found.counts.manifests, found.counts.blobs, found.counts.bytes) == (2, 2, len(b"old layerolder layer"))
    assert old in {gone.digest for gone in found.manifests}
    assert {gone.why for gone in found.manifests} == {"without a tag for 0 hours, 0 days are kept"}
    assert [await bench.ask(f"SELECT * FROM {table}") for table in tables] == before
    assert sorted(path.name for path in (tmp_path / "blobs").rglob("*")) == files


async def test_a_preview_takes_the_tags_of_old_copies_as_a_collection_does(bench: Bench) -> None:
    """A namespace's collection leaves those of others alone."""
    manifest = Manifest.parse(canonical_json({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": []}))
    now = time.time()
    for repository, expired_at in (("one.example/app", now - 31 * DAY), ("two.example/app", now - 29 * DAY)):
        await bench.registry.index.put_manifest(repository, manifest, ["v1"], sparse=True, expires_at=expired_at)
    assert (await bench.preview(namespace="two.example")).counts == Collected()
    found = await bench.preview()
    assert [(gone.repository, gone.tag) for gone in found.tags] == [("one.example/app", "v1")]
    assert found.tags[0].why == "a copy that nobody asked for since it expired 31 days ago"
    taken = await bench.collect()
    assert taken == found.counts
    assert (taken.tags, taken.manifests, taken.repositories) == (1, 1, 1)


async def test_a_file_that_cannot_be_deleted_holds_up_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.image("a", b"stuck")
    await bench.image("a", b"not stuck")
    real = bench.registry.blobs.delete

    async def delete(digest: Digest) -> None:
        if digest == Digest.of(b"stuck"):
            raise PermissionError(1, "Operation not permitted")
        await real(digest)

    monkeypatch.setattr(bench.registry.blobs, "delete", delete)
    assert (await bench.collect()).blobs == 2  # and the config's
    assert await bench.file(b"stuck")
    monkeypatch.undo()
    assert (await bench.collect()).blobs == 1
    assert not await bench.file(b"stuck")


async def test_a_blob_that_is_brought_again_while_its_file_goes_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the file's end and the row's: the upload comes with its own file, and the row stays."""
    digest = await bench.blob("a", b"gone and back")
    real = garbage.Garbage.gone

    async def gone(self: garbage.Garbage, digests: Sequence[Digest]) -> None:
        assert not await bench.file(b"gone and back")
        await bench.blob("b", b"gone and back")
        await real(self, digests)

    monkeypatch.setattr(garbage.Garbage, "gone", gone)
    await bench.collect()
    assert await bench.file(b"gone and back")
    assert await bench.registry.index.blob_size("b", digest) == len(b"gone and back")


@pytest.mark.timeout(300)
def test_a_collection_that_is_killed_at_any_step_loses_nothing_and_is_ended_by_the_next(tmp_path: Path) -> None:
    """Each commit, and each file before and after it goes, as the last thing that happens."""
    steps = [] if SOAK else ["4"]
    command = [sys.executable, "-m", "tests.support.collection_faults", str(tmp_path), *steps]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"before commit", "before unlink blob", "after unlink blob"} <= set(runs[0]["steps"])
    assert len(runs) - 1 == (len(runs[0]["steps"]) if SOAK else 4)
    for run in runs[1:]:
        assert run["killed"], run
        assert run["wrong"] == [], run


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
    rows = await bench.ask("SELECT digest FROM blobs WHERE NOT leaving")
    assert await bench.registry.blobs.missing([Digest.parse(str(row[0])) for row in rows]) is None
    for repository, digest in await bench.ask("SELECT repository, digest FROM tags"):
        stored = await bench.registry.index.manifest(repository, digest)
        assert stored is not None
        for layer in json.loads(stored.raw)["layers"]:
            assert await bench.registry.blobs.size(Digest.parse(layer["digest"])) == 100


async def test_twenty_clients_push_and_pull_over_http_while_it_collects(bench: Bench) -> None:
    """No promise lasts and nothing is young: only what a tag names may be counted on, and all of that may."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    rounds = 100 if SOAK else 8
    layers = [dice.randbytes(5_000) for _ in range(40)]
    stable = [await bench.image("stable", layer, f"t{number}") for number, layer in enumerate(layers[:4])]
    ended, collections, freed, pulls, refused = asyncio.Event(), 0, 0, 0, 0

    async def collecting() -> None:
        nonlocal collections, freed
        while not ended.is_set():
            freed += (await bench.collect(stray_seconds=3600)).bytes
            collections += 1

    async def pull(repository: str, reference: str, layer: bytes) -> None:
        nonlocal pulls
        async with client.get(f"/v2/{repository}/manifests/{reference}") as answer:
            assert answer.status == 200
            value = await answer.json(content_type=None)
        for blob, data in ((value["config"], CONFIG), (value["layers"][0], layer)):
            async with client.get(f"/v2/{repository}/blobs/{blob['digest']}") as answer:
                assert (answer.status, await answer.read()) == (200, data)
        pulls += 1

    async def puller() -> None:
        for _ in range(rounds):
            number = dice.randrange(len(stable))
            await pull("stable", dice.choice([f"t{number}", stable[number]]), layers[number])

    async def pusher(name: str) -> None:
        """Moves its one tag from layer to layer; whoever is told that something is gone brings it again."""
        nonlocal refused
        for _ in range(rounds):
            layer, answered = dice.choice(layers), 0
            while answered != 201:
                for data in (CONFIG, layer):
                    path = f"/v2/{name}/blobs/uploads/?digest={Digest.of(data)}"
                    async with client.post(path, data=data) as answer:
                        assert answer.status == 201
                raw = canonical_json(value_of(layer, name))
                headers = {"Content-Type": media_types.OCI_MANIFEST}
                async with client.put(f"/v2/{name}/manifests/t", data=raw, headers=headers) as answer:
                    answered = answer.status
                    if answered != 201:
                        assert (await answer.json())["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"
                        refused += 1
            await pull(name, "t", layer)

    async with TestClient(TestServer(create_app(bench.registry))) as client:
        collector = asyncio.create_task(collecting())
        await asyncio.gather(*(puller() for _ in range(10)), *(pusher(f"p{number}") for number in range(10)))
        ended.set()
        await collector
    print(f"{pulls} pulls, {collections} collections, {refused} manifests came after their blobs had gone")
    assert pulls == 20 * rounds
    assert collections > 1
    assert freed
    await bench.collect()
    named = {row[0] for row in await bench.ask("SELECT child FROM children")}
    files = {f"sha256:{path.name}" for path in bench.registry.blobs.path(Digest.of(CONFIG)).parents[1].glob("*/*")}
    assert files == named


def value_of(layer: bytes, note: str) -> dict[str, object]:
    config = Descriptor(media_types.OCI_CONFIG, Digest.of(CONFIG), len(CONFIG))
    layers = [Descriptor(media_types.OCI_LAYER, Digest.of(layer), len(layer)).to_json()]
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "annotations": {"note": note}}
    return {**value, "config": config.to_json(), "layers": layers}


async def test_who_runs_the_same_image_from_another_repository_is_not_told_of_and_needs_nothing_here(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await bench.image("ours/app", b"the same", "v1")
    assert await bench.image("theirs/app", b"the same", "v1") == digest

    async def held() -> Mapping[str, Sequence[str]]:
        return {f"theirs/app@{digest}": ["secret@v1"]}

    monkeypatch.setattr(bench.holders, "held", held)
    async with TestClient(TestServer(create_app(bench.registry))) as client:
        described = await (await client.get("/v2/_faas/images/ours/app/v1")).json()
        assert described["holders"] == []
        assert (await client.delete(f"/v2/theirs/app/manifests/{digest}")).status == 409
        assert (await client.delete(f"/v2/ours/app/manifests/{digest}")).status == 202
    assert (await bench.collect()).manifests == 0
