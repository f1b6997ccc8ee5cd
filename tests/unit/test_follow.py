"""Following a tag: a real gateway on a real registry's outbox; only the instances are not real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from faas.errors import Conflict, FaasError, ImageUnusable, InitFailed, NotFound, ShuttingDown, Throttled, Unavailable
from faas.oci import media_types
from faas.oci.changes import TagChange
from faas.oci.manifest import Manifest
from faas.protocol import CheckReport, Revision
from gateway.follow import function_of, is_final, newest
from registry.index.index import Index
from registry.outbox import Outbox
from tests.support.control import Control, control, until
from tests.support.fake_worker import FakeWorker


def image(words: str) -> Manifest:
    """A manifest that needs nothing; its words make its digest."""
    value = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [],
        "annotations": {"words": words},
    }
    return Manifest.parse(json.dumps(value).encode(), media_types.OCI_INDEX)


class Tags:
    """A registry's index; `forgetful` is an outbox that a crash keeps from forgetting."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.outbox = Outbox(index)
        self.forgetful = False

    async def push(self, words: str, *tags: str, repository: str = "hello") -> str:
        manifest = image(words)
        assert await self.index.put_manifest(repository, manifest, tags) is None
        return str(manifest.digest)

    async def pending(self) -> list[str]:
        return [change.digest for change in await self.outbox.read(0, 1000)]

    async def wait(self) -> None:
        await self.outbox.wait()

    async def read(self, after: int, limit: int) -> list[TagChange]:
        return await self.outbox.read(after, limit)

    async def done(self, ids: Collection[int]) -> None:
        if ids and self.forgetful:
            raise Unavailable("the power went off here")
        await self.outbox.done(ids)


@asynccontextmanager
async def registry(folder: Path) -> AsyncIterator[Tags]:
    index = await Index.open(f"sqlite+aiosqlite:///{folder / 'registry.db'}")
    try:
        yield Tags(index)
    finally:
        await index.close()


async def revisions(server: Control, name: str = "hello") -> list[tuple[int, str, str]]:
    """(number, digest, by), the newest first."""
    listed = (await server.call("GET", f"/v1/functions/{name}/revisions")).json()["revisions"]
    return [(row["number"], row["image"].partition("@")[2], row["created_by"]) for row in listed]


async def described(server: Control, name: str = "hello") -> Any:
    return (await server.call("GET", f"/v1/functions/{name}")).json()


async def outcome(server: Control, state: str, name: str = "hello") -> Any:
    """The last push's, once it is in that state."""

    async def look() -> Any:
        found = (await described(server, name)).get("follow") or {}
        return found if found.get("state") == state else None

    return await until(look)


def change(number: int, repository: str = "hello", tag: str = "prod") -> TagChange:
    return TagChange(number, repository, tag, f"sha256:{number:064}", float(number))


def test_only_the_newest_change_of_a_followed_tag_is_wanted() -> None:
    follows = {("default", "hello"): "prod", ("team", "hello"): "stable"}
    changes = [
        change(1),
        change(2, tag="latest"),
        change(3, "team/hello", "stable"),
        change(4),
        change(5, "default/hello"),
        change(6, "runtime/python"),
        change(7, "a/b/hello"),
    ]
    wanted, spare = newest({}, changes[:3], lambda where: follows.get(where, ""))
    wanted, more = newest(wanted, changes[3:], lambda where: follows.get(where, ""))
    assert {where: one.id for where, one in wanted.items()} == {("default", "hello"): 4, ("team", "hello"): 3}
    assert (spare, more) == ([2], [1, 5, 6, 7])


def test_a_repository_has_one_function() -> None:
    assert function_of("hello") == ("default", "hello")
    assert function_of("team/hello") == ("team", "hello")
    assert function_of("default/hello") is None


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ImageUnusable("for s390x"), True),
        (InitFailed("no module named x"), True),
        (NotFound(), True),
        (Conflict(), True),
        (Unavailable(), False),
        (ShuttingDown(), False),
        (Throttled(), False),
        (FaasError(), False),
        (OSError("disk"), False),
    ],
)
def test_what_the_image_is_to_blame_for_is_not_tried_again(error: Exception, final: bool) -> None:
    assert is_final(error) is final


async def test_a_tag_that_moves_is_written_down_once_and_only_for_a_reader(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags:
        first = await tags.push("one", "prod", "prod")
        await tags.push("one", "prod")
        async with asyncio.timeout(1):
            await tags.wait()
        second = await tags.push("two", "prod", "v2")
        found = await tags.outbox.read(0, 10)
        assert [(c.id, c.tag, c.digest) for c in found] == [(1, "prod", first), (2, "prod", second), (3, "v2", second)]
        assert [c.id for c in await tags.outbox.read(1, 1)] == [2]
        assert await tags.index.remove_tag("hello", "prod")
        await tags.done([1, 2, 3])
        assert await tags.pending() == []
        await tags.push("one", "prod")
        assert [c.id for c in await tags.outbox.read(0, 10)] == [4]  # an id of the past is never given again
    alone = await Index.open(f"sqlite+aiosqlite:///{tmp_path / 'alone.db'}")
    try:
        await alone.put_manifest("hello", image("one"), ["prod"])
        assert await Outbox(alone).read(0, 10) == []
    finally:
        await alone.close()


async def test_a_push_of_the_followed_tag_makes_a_revision_and_of_another_none(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        await server.deploy(follow="prod", memory=256)
        assert (await described(server))["follow"] == {"tag": "prod", "state": "waiting"}
        await tags.push("other", "latest")
        await until(lambda: _none(tags))
        digest = await tags.push("new", "prod")
        follow = await outcome(server, "deployed")
        assert (follow["tag"], follow["digest"], follow["error"]) == ("prod", digest, "")
        assert (await revisions(server))[0] == (2, digest, "follow prod")
        function = await described(server)
        assert (function["revision"], function["memory"], function["image"]) == (2, 256, f"hello@{digest}")
        assert server.worker.checked[-1].number == 2
        await until(lambda: _none(tags))
        await tags.push("new", "prod")
        assert await tags.pending() == []
        assert len(await revisions(server)) == 2


async def _none(tags: Tags) -> bool:
    return await tags.pending() == []


async def test_what_is_live_already_makes_no_revision_wherever_it_lies(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        digest = str(image("new").digest)
        body = {"spec": {"name": "hello", "follow": "latest"}, "image": f"team/other@{digest}"}
        assert (await server.call("PUT", "/v1/functions/hello", body)).status == 201
        await tags.push("new", "latest")
        assert (await outcome(server, "deployed"))["digest"] == digest
        assert len(await revisions(server)) == 1


async def test_another_namespace_has_its_own_repository(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        await server.deploy("hello", namespace="team", follow="prod")
        await server.deploy("hello", follow="prod")
        digest = await tags.push("new", "prod", repository="team/hello")
        await outcome(server, "deployed", "hello.team")
        assert (await revisions(server, "hello.team"))[0][1] == digest
        assert len(await revisions(server)) == 1

        async def recorded() -> list[dict[str, str]]:
            answered = await server.call("GET", "/v1/audit?action=functions.follow")
            return list(answered.json()["records"])

        found = (await until(recorded))[0]
        assert (found["by"], found["object"], found["namespace"]) == ("follow prod", "functions/hello.team", "team")


async def test_an_image_that_does_not_start_leaves_live_where_it_was_and_is_tried_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        await server.deploy(follow="prod")
        server.worker.fails = "no module named x"
        digest = await tags.push("broken", "prod")
        follow = await outcome(server, "failed")
        assert (follow["digest"], follow["error"]) == (digest, "no module named x")
        assert "hello: the push of prod" in caplog.text
        assert [row[0] for row in await revisions(server)] == [1]
        await until(lambda: _none(tags))
        assert len(server.worker.checked) == 2
        server.worker.fails = ""
        await tags.push("mended", "prod")
        assert (await outcome(server, "deployed"))["error"] == ""


class Busy(FakeWorker):
    """A worker that has no room for the first `refusals` images after the first one."""

    refusals = 0

    async def prepare(self, revision: Revision) -> None:
        if revision.key.number > 1 and self.refusals:
            self.refusals -= 1
            raise Unavailable("no room")
        await super().prepare(revision)


async def test_want_of_a_part_is_tried_again_and_holds_the_image_meanwhile(tmp_path: Path) -> None:
    worker = Busy()
    async with registry(tmp_path) as tags, control(tmp_path, worker, changes=tags) as server:
        await server.deploy(follow="prod")
        worker.refusals = 1_000_000
        digest = await tags.push("new", "prod")
        assert (await outcome(server, "retrying"))["error"] == "no room"
        assert "a push that hello follows" in (await server.gateway.held())[f"hello@{digest}"]  # or a try's too
        worker.refusals = 0
        assert (await outcome(server, "deployed"))["digest"] == digest
        await until(lambda: _none(tags))
        (held,) = (await server.gateway.held())[f"hello@{digest}"]
        assert held.startswith("hello@v")


async def test_who_rolls_back_between_two_tries_has_the_last_word(tmp_path: Path) -> None:
    worker = Busy()
    async with registry(tmp_path) as tags, control(tmp_path, worker, changes=tags) as server:
        await server.deploy(follow="prod")
        await tags.push("two", "prod")
        await outcome(server, "deployed")
        worker.refusals = 1_000_000
        await tags.push("three", "prod")
        await outcome(server, "retrying")
        await server.gateway.deployer.point("default", "hello", "live", 1)
        await outcome(server, "skipped")
        await until(lambda: _none(tags))
        assert (await described(server))["revision"] == 1
        worker.refusals = 0
        digest = await tags.push("four", "prod")
        await outcome(server, "deployed")
        assert (await described(server))["image"] == f"hello@{digest}"


class Gated(FakeWorker):
    """Checks of later revisions end when they may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def check(self, revision: Revision) -> CheckReport:
        if revision.key.number > 1:
            await self.may.wait()
        return await super().check(revision)


async def test_of_several_quick_pushes_the_last_one_is_live_in_the_end(tmp_path: Path) -> None:
    worker = Gated()
    async with registry(tmp_path) as tags, control(tmp_path, worker, changes=tags) as server:
        await server.deploy(follow="prod")
        pushed = [await tags.push(str(number), "prod") for number in range(10)]
        worker.may.set()
        await until(lambda: _none(tags))
        found = [digest for _, digest, _ in reversed(await revisions(server))][1:]
        assert found[-1] == pushed[-1]
        assert len(found) <= 2  # the one that was on its way, and the last
        assert found == [digest for digest in pushed if digest in found]  # in the order of the pushes


async def test_a_kill_between_the_tag_and_the_deploy_changes_nothing_in_the_end(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags, control(tmp_path) as server:  # this gateway reads no changes
        await server.deploy(follow="prod")
        digest = await tags.push("new", "prod")
        assert await tags.pending() == [digest]
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        await outcome(server, "deployed")
        assert (await described(server))["image"] == f"hello@{digest}"


async def test_a_kill_between_the_deploy_and_its_forgetting_does_not_undo_a_rollback(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        await server.deploy(follow="prod")
        tags.forgetful = True
        digest = await tags.push("new", "prod")
        await outcome(server, "deployed")
        await server.gateway.deployer.point("default", "hello", "live", 1)
        assert await tags.pending() == [digest]
    async with registry(tmp_path) as tags, control(tmp_path, changes=tags) as server:
        await until(lambda: _none(tags))
        assert (await described(server))["revision"] == 1
        assert len(await revisions(server)) == 2


async def test_changes_of_a_deleted_function_and_from_before_it_followed_are_dropped(tmp_path: Path) -> None:
    worker = Busy()
    async with registry(tmp_path) as tags, control(tmp_path, worker, changes=tags) as server:
        await server.deploy()
        await tags.push("early", "prod")
        await until(lambda: _none(tags))
        await server.deploy(follow="prod")
        worker.refusals = 1_000_000
        await tags.push("new", "prod")
        await outcome(server, "retrying")
        assert (await server.call("DELETE", "/v1/functions/hello")).status == 204
        await until(lambda: _none(tags))
        worker.refusals = 0
        await server.deploy(follow="prod")
        assert (await described(server))["follow"] == {"tag": "prod", "state": "waiting"}
        assert len(await revisions(server)) == 1


async def test_thousands_of_changes_that_nobody_follows_are_gone_at_once(tmp_path: Path) -> None:
    async with registry(tmp_path) as tags:
        manifests = [image("a"), image("b")]
        for number in range(40):
            names = [f"t{n}" for n in range(32)]
            await tags.index.put_manifest("hello", manifests[number % 2], names)
        assert len(await tags.outbox.read(0, 10_000)) == 40 * 32
        async with control(tmp_path, changes=tags):
            await until(lambda: _none(tags))
