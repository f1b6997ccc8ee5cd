"""Retention: rules set over HTTP, tags that do not move, and exactly what a rule says going, with a preview before."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from faas.oci import media_types
from faas.oci.digest import Digest
from registry.app import create_app
from registry.index import index as index_module
from registry.rules import DAY, Rule
from tests.support.garbage import Bench, opened, reference
from tests.support.registry import RegistryProcess, Reply, registry_process

WEEK = Rule(keep_days=7, untagged_days=0)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryProcess]:
    with registry_process(tmp_path / "registry", "basic") as running:
        yield running


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Leases are over at once."""
    monkeypatch.setattr(index_module, "LEASE_SECONDS", -1.0)
    async with opened(tmp_path) as bench:
        yield bench


def set_rule(registry: RegistryProcess, pattern: str, **rule: Any) -> Reply:
    return registry.call("PUT", f"/v2/_faas/retention/{pattern}", json.dumps(rule).encode())


def push(registry: RegistryProcess, reference: str, layer: bytes, repository: str = "app") -> Reply:
    digest, raw = registry.push_image(repository, "dev-made", layer)
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    return registry.call("PUT", f"/v2/{repository}/manifests/{reference.replace('DIGEST', digest)}", raw, headers)


# Rules


def test_rules_are_set_listed_and_removed_and_survive_a_restart(registry: RegistryProcess) -> None:
    assert set_rule(registry, "*", keep_last=10, untagged_days=1.5).status == 204
    assert set_rule(registry, "team/app", immutable=True, movable=["latest"]).status == 204
    assert set_rule(registry, "run", keep_days=1).status == 204  # a repository may be called like the endpoint
    nothing: dict[str, Any] = {
        "keep_last": None,
        "keep_days": None,
        "untagged_days": None,
        "immutable": False,
        "movable": [],
    }
    rules = [
        {"pattern": "*", **nothing, "keep_last": 10, "untagged_days": 1.5},
        {"pattern": "run", **nothing, "keep_days": 1},
        {"pattern": "team/app", **nothing, "immutable": True, "movable": ["latest"]},
    ]
    assert registry.call("GET", "/v2/_faas/retention").json()["rules"] == rules
    registry.stop()
    registry.start()
    assert registry.call("GET", "/v2/_faas/retention").json()["rules"] == rules
    assert registry.call("DELETE", "/v2/_faas/retention/run").status == 204
    gone = registry.call("DELETE", "/v2/_faas/retention/run")
    assert (gone.status, gone.code) == (404, "NAME_UNKNOWN")


def test_bad_rules_are_refused_and_nothing_is_stored(registry: RegistryProcess) -> None:
    bodies = (
        b"{",
        b"[]",
        b'{"keep": 3}',
        b'{"keep_last": 0}',
        b'{"keep_days": NaN}',
        b'{"keep_last": %s}' % (b"9" * 5000),
    )
    for pattern, body in [*(("app", body) for body in bodies), ("A", b"{}"), ("app%00", b"{}"), ("a%20b", b"{}")]:
        reply = registry.call("PUT", f"/v2/_faas/retention/{pattern}", body)
        assert reply.status == 400, (pattern, body, reply.body)
        assert reply.json()["errors"]
    assert registry.call("GET", "/v2/_faas/retention").json() == {"rules": []}
    assert registry.call("POST", "/v2/_faas/retention/other").status == 404


# Immutable tags


def test_an_immutable_tag_stays_where_it_is_and_may_be_pushed_again_and_deleted(registry: RegistryProcess) -> None:
    set_rule(registry, "app", immutable=True, movable=["latest", "dev-*"])
    first = push(registry, "v1", b"first")
    assert first.status == 201
    refused = push(registry, "v1", b"second")
    assert (refused.status, refused.code) == (409, "DENIED")
    assert f"the tag v1 is immutable and names {first.headers['Docker-Content-Digest']}" in str(refused.json())
    assert push(registry, "v1", b"first").status == 201
    assert push(registry, "latest", b"first").status == push(registry, "latest", b"second").status == 201
    held = registry.call("HEAD", "/v2/app/manifests/v1")
    assert held.headers["Docker-Content-Digest"] == first.headers["Docker-Content-Digest"]
    assert registry.call("DELETE", "/v2/app/manifests/v1").status == 202
    assert push(registry, "v1", b"second").status == 201
    assert push(registry, "v1", b"third", "another").status == push(registry, "v1", b"fourth", "another").status == 201


def test_of_several_tags_at_once_one_that_stays_refuses_all(registry: RegistryProcess) -> None:
    set_rule(registry, "app", immutable=True, movable=["dev-*"])
    push(registry, "v1", b"first")
    refused = push(registry, "DIGEST?tag=v2&tag=v1&tag=v3", b"second")
    assert (refused.status, refused.json()["errors"][0]["detail"]) == (409, "v1")
    assert registry.call("GET", "/v2/app/tags/list").json()["tags"] == ["dev-made", "v1"]


def test_a_second_signature_is_added_under_the_tag_of_the_first(registry: RegistryProcess) -> None:
    set_rule(registry, "app", immutable=True, movable=["dev-*"])
    signed = push(registry, "v1", b"signed").headers["Docker-Content-Digest"].replace(":", "-")
    for tag in (f"{signed}.sig", signed):
        assert push(registry, tag, b"one").status == push(registry, tag, b"one and two").status == 201


async def test_of_many_pushes_of_one_new_immutable_tag_one_is_taken(bench: Bench) -> None:
    await bench.registry.retention.put("app", Rule(immutable=True))
    images = [await bench.image("app", b"layer %d" % number) for number in range(20)]
    raws = [(await bench.ask("SELECT raw FROM manifests WHERE digest = ?", digest))[0][0] for digest in images]
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    async with TestClient(TestServer(create_app(bench.registry))) as client:

        async def one(raw: bytes) -> int:
            async with client.put("/v2/app/manifests/v1", data=raw, headers=headers) as answer:
                return answer.status

        answers = await asyncio.gather(*(one(raw) for raw in raws))
    assert sorted(answers) == [201, *[409] * 19]
    named = str(Digest.of(raws[answers.index(201)]))
    assert await bench.ask("SELECT digest FROM tags WHERE tag = 'v1'") == [(named,)]


# What goes


async def aged(bench: Bench, repository: str, tag: str, days: float) -> None:
    """As if this tag, and what it names, had been pushed so many days ago."""
    moment = time.time() - days * DAY
    await bench.change("UPDATE tags SET updated_at = ? WHERE repository = ? AND tag = ?", moment, repository, tag)
    await bench.change(
        "UPDATE manifests SET untagged_at = ? WHERE digest = "
        "(SELECT digest FROM tags WHERE repository = ? AND tag = ?)", moment, repository, tag,
    )  # fmt: skip


async def test_tags_go_by_the_rule_with_their_images_and_the_preview_said_so(bench: Bench) -> None:
    layers = {f"v{days}": b"layer of v%d" % days for days in (1, 6, 8, 90)}
    images = {tag: await bench.image("app", layer, tag) for tag, layer in layers.items()}
    for tag in images:
        await aged(bench, "app", tag, float(tag[1:]))
    would = await bench.preview(WEEK, expire=True)
    assert [(gone.tag, gone.digest, gone.why) for gone in would.tags] == [
        ("v8", images["v8"], "pushed 8 days ago, 7 days are kept"),
        ("v90", images["v90"], "pushed 90 days ago, 7 days are kept"),
    ]
    assert {gone.digest for gone in would.manifests} == {images["v8"], images["v90"]}
    assert await bench.tags("app") == ["v1", "v6", "v8", "v90"]
    assert (await bench.collect(WEEK)).tags == 0  # a collection that was not asked to leaves tags alone
    assert await bench.collect(WEEK, expire=True) == would.counts
    assert would.counts.bytes == len(layers["v8"]) + len(layers["v90"])
    assert await bench.tags("app") == ["v1", "v6"]
    assert [await bench.file(layer) for layer in layers.values()] == [True, True, False, False]


async def test_without_a_time_of_its_own_an_image_outlives_its_tag_by_thirty_days(bench: Bench) -> None:
    image = await bench.image("app", b"a layer", "v1")
    await aged(bench, "app", "v1", 29)
    rule = Rule(keep_days=7)
    found = await bench.collect(rule, expire=True)
    assert (found.tags, found.manifests) == (1, 0)
    assert await bench.here("app", image)
    assert (await bench.collect(rule, expire=True, now=time.time() + 2 * DAY)).manifests == 1


async def test_a_tag_of_what_is_needed_stays_also_through_an_index(bench: Bench) -> None:
    """The gateway holds the image of one platform; people know it by the tag of the index."""
    platform = await bench.image("app", b"for this machine", "by-itself")
    inner = await bench.list_of("app", [platform])
    await bench.list_of("app", [inner], "multi", annotations={"n": "outer"})
    unneeded = await bench.image("app", b"for nobody")
    await bench.list_of("app", [unneeded], "unneeded")
    for tag in ("by-itself", "multi", "unneeded"):
        await aged(bench, "app", tag, 100)
    bench.holders.digests[platform] = ["hello@v1"]
    would = await bench.preview(WEEK, expire=True)
    assert [gone.tag for gone in would.tags] == ["unneeded"]
    await bench.collect(WEEK, expire=True)
    assert await bench.tags("app") == ["by-itself", "multi"]
    bench.holders.digests.clear()
    await bench.collect(WEEK, expire=True)
    assert await bench.tags("app") == []


async def test_where_nobody_can_say_what_is_needed_no_tag_goes(bench: Bench) -> None:
    await bench.image("app", b"maybe deployed", "v1")
    await aged(bench, "app", "v1", 100)

    async def fails() -> dict[str, list[str]]:
        raise RuntimeError("the gateway does not answer")

    bench.holders.held = fails  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await bench.collect(WEEK, expire=True)
    assert await bench.tags("app") == ["v1"]


async def test_signatures_by_tag_stay_with_their_image_count_for_nothing_and_go_after_it(bench: Bench) -> None:
    names = {}
    for days in (3, 2, 1):
        image = await bench.image("app", b"image %d" % days, f"v{days}")
        names[days] = f"{image.replace(':', '-')}.sig"
        await bench.image("app", b"signature %d" % days, names[days])
        for tag in (f"v{days}", names[days]):
            await aged(bench, "app", tag, days)
    rule = Rule(keep_last=2, untagged_days=0)
    await bench.collect(rule, expire=True)
    assert await bench.tags("app") == sorted(["v1", "v2", *names.values()])
    await bench.collect(rule, expire=True)
    assert await bench.tags("app") == sorted(["v1", "v2", names[1], names[2]])
    assert not await bench.file(b"signature 3")


async def test_a_tag_that_is_pushed_after_it_was_chosen_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.image("app", b"old", "v1")
    await bench.image("app", b"older", "v2")
    for tag in ("v1", "v2"):
        await aged(bench, "app", tag, 100)
    real = asyncio.to_thread

    async def push_meanwhile(*call: Any) -> Any:
        chosen = await real(*call)
        await bench.image("app", b"pushed just now", "v1")
        return chosen

    monkeypatch.setattr(asyncio, "to_thread", push_meanwhile)
    assert (await bench.collect(WEEK, expire=True)).tags == 1
    assert await bench.tags("app") == ["v1"]
    assert await bench.file(b"pushed just now")


async def test_the_pattern_that_says_most_holds_alone_and_a_wide_one_not_for_the_bases(bench: Bench) -> None:
    repositories = ("team/app", "team/other", "app", "runtime/python")
    for repository in repositories:
        for tag in ("v1", "v2", "v3"):
            await bench.image(repository, f"{repository} {tag}".encode(), tag)
    rules = bench.registry.retention
    await rules.put("*", Rule(keep_last=1))
    await rules.put("team/*", Rule(keep_last=2))
    await rules.put("team/app", Rule(untagged_days=1))
    await bench.registry.collect(expire=True)
    left = {name: len(await bench.tags(name)) for name in repositories}
    assert left == {"team/app": 3, "team/other": 2, "app": 1, "runtime/python": 3}
    await rules.put("runtime/*", Rule(keep_last=1))
    await bench.registry.collect(expire=True)
    assert await bench.tags("runtime/python") == ["v3"]


class Clock:
    """Instead of the module `time`."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


async def test_through_a_year_of_daily_pushes_exactly_what_the_rule_says_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag a day and a moving `latest`, a signature for each image; every 30th is deployed, and stays. Looked at after
    collections on days at random."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    begin = time.time()
    clock = Clock(begin)
    monkeypatch.setattr(index_module, "time", clock)
    rule = Rule(keep_last=10, keep_days=14, untagged_days=3)
    config, layer = await bench.blob("app", b"{}"), await bench.blob("app", b"layer")
    images: list[str] = []
    for day in range(365):
        clock.now = begin + day * DAY
        value: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": {"mediaType": media_types.OCI_CONFIG, "digest": str(config), "size": 2},
            "layers": [{"mediaType": media_types.OCI_LAYER, "digest": str(layer), "size": 5}],
            "annotations": {"day": str(day)},
        }
        images.append(await bench.put("app", value, f"day-{day}", "latest"))
        await bench.put("app", {**value, "subject": reference(images[day])})
        if day % 30 == 0:
            bench.holders.digests[images[day]] = [f"app@v{day // 30 + 1}"]
        if day != 364 and dice.random() < 0.9:
            continue
        await bench.collect(rule, expire=True, now=clock.now + 60, stray_seconds=3600)
        # The last ten by count are among the last fourteen by day: `latest` and a tag a day.
        tagged = {old for old in range(day + 1) if day - old < 14 or old % 30 == 0}
        assert set(await bench.tags("app")) == {f"day-{old}" for old in tagged} | {"latest"}
        rows = await bench.ask("SELECT digest, subject, annotations FROM manifests")
        days = [int(json.loads(annotations)["day"]) for _, _, annotations in rows]
        assert sorted(days) == sorted([*tagged, *tagged])  # the image and its signature
        assert {subject for _, subject, _ in rows if subject} == {images[old] for old in tagged}
