"""Deploys, revisions, aliases and deletes through the control API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.leases import InvocationResult
from faas.oci.manifest import Manifest
from faas.protocol import (
    LogRecord,
    Revision,
)
from tests.support.control import DIGEST, Control, control, until
from tests.support.fake_worker import FakeWorker

OTHER = "sha256:" + "b" * 64


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


async def which(revision: Revision, event: bytes) -> InvocationResult:
    return InvocationResult(b'"v%d"' % revision.key.number)


async def test_a_first_deploy_makes_a_checked_revision_that_answers(server: Control) -> None:
    body = {"spec": {"name": "hello", "public": True, "memory": 256}, "image": f"hello@{DIGEST}"}
    answered = await server.call("PUT", "/v1/functions/hello", body)
    function = answered.json()
    assert answered.status == 201
    assert (function["revision"], function["interface"], function["memory"]) == (1, "lambda", 256)
    assert function["changed"] is True
    assert function["check"]["interface"] == "lambda"
    assert function["url"] == "http://127.0.0.1:8080/function/hello"
    assert str(server.worker.checked[0]) == "hello@v1"
    assert (await server.call("GET", "/function/hello", public=True)).status == 200


async def test_the_same_spec_and_image_again_change_nothing(server: Control) -> None:
    await server.deploy()
    again = await server.deploy()
    assert (again["changed"], again["revision"]) == (False, 1)
    assert len(server.worker.checked) == 1


async def test_a_deploy_moves_live_and_rollback_moves_it_back(tmp_path: Path) -> None:
    async with control(tmp_path, FakeWorker(which)) as server:
        await server.deploy(memory=128)
        await server.deploy(memory=256)
        assert (await server.call("GET", "/function/hello", public=True)).body == b'"v2"'
        back = await server.call("POST", "/v1/functions/hello/rollback")
        assert (back.status, back.json()["revision"]) == (200, 1)
        assert (await server.call("GET", "/function/hello", public=True)).body == b'"v1"'
        assert (await server.call("GET", "/function/hello:v2", public=True)).body == b'"v2"'
        assert (await server.call("POST", "/v1/functions/hello/rollback")).status == 409
        forward = await server.call("POST", "/v1/functions/hello/rollback", {"to": 2})
        assert forward.json()["revision"] == 2
        assert (await server.call("POST", "/v1/functions/hello/rollback", {"to": 9})).status == 404


async def test_a_failed_check_leaves_live_where_it_was_and_shows_the_log(tmp_path: Path) -> None:
    async with control(tmp_path, FakeWorker(which)) as server:
        await server.deploy(memory=128)
        server.worker.fails = "No module named 'nope'"
        body = {"spec": {"name": "hello", "public": True, "memory": 256}, "image": f"hello@{DIGEST}"}
        refused = await server.call("PUT", "/v1/functions/hello", body)
        assert refused.status == 502
        assert refused.json()["error"]["log_tail"] == "No module named 'nope'"
        assert (await server.call("GET", "/function/hello", public=True)).body == b'"v1"'
        revisions = (await server.call("GET", "/v1/functions/hello/revisions")).json()["revisions"]
        assert [r["number"] for r in revisions] == [1]
        assert [str(key) for key in server.worker.retired] == ["hello@v2"]
        server.worker.fails = ""
        assert (await server.deploy(memory=512))["revision"] == 3  # a number is never given twice


async def test_without_check_nothing_is_started(server: Control) -> None:
    body = {"spec": {"name": "hello"}, "image": f"hello@{DIGEST}", "check": False}
    function = (await server.call("PUT", "/v1/functions/hello", body)).json()
    assert (function["state"], function["interface"], function["check"]) == ("unchecked", "auto", None)
    assert server.worker.checked == []


async def test_what_the_first_use_finds_out_is_kept(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        body = {"spec": {"name": "hello", "public": True}, "image": f"hello@{DIGEST}", "check": False}
        await server.call("PUT", "/v1/functions/hello", body)
        assert (await server.call("GET", "/function/hello", public=True)).status == 200
    async with control(tmp_path) as again:
        assert (await again.call("GET", "/v1/functions/hello")).json()["interface"] == "lambda"


async def test_functions_are_there_again_after_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path, FakeWorker(which)) as server:
        await server.deploy(memory=128)
        await server.deploy(memory=256)
        await server.call("PUT", "/v1/functions/hello/aliases/old", {"revision": 1})
        token = server.token
    async with control(tmp_path, FakeWorker(which)) as server:
        assert server.token == token
        assert (await server.call("GET", "/function/hello", public=True)).body == b'"v2"'
        assert (await server.call("GET", "/function/hello:old", public=True)).body == b'"v1"'


async def test_ten_revisions_are_kept_and_those_that_an_alias_names(server: Control) -> None:
    await server.deploy(memory=128)
    await server.call("PUT", "/v1/functions/hello/aliases/first", {"revision": 1})
    for memory in range(129, 141):
        await server.deploy(memory=memory)
    revisions = (await server.call("GET", "/v1/functions/hello/revisions")).json()["revisions"]
    assert [r["number"] for r in revisions] == [*range(13, 3, -1), 1]
    assert revisions[-1]["aliases"] == ["first"]
    assert {str(key) for key in server.worker.retired} == {"hello@v2", "hello@v3"}
    assert (await server.call("DELETE", "/v1/functions/hello/aliases/first")).status == 204
    revisions = (await server.call("GET", "/v1/functions/hello/revisions")).json()["revisions"]
    assert revisions[-1]["number"] == 4


@pytest.mark.parametrize(
    ("alias", "revision", "status"),
    [("prod", 1, 200), ("7", 1, 400), ("v7", 1, 400), ("a b", 1, 400), ("prod", 9, 404), ("prod", "1", 400)],
)
async def test_an_alias_is_a_name_that_leads_to_a_revision(
    server: Control, alias: str, revision: object, status: int
) -> None:
    await server.deploy()
    path = f"/v1/functions/hello/aliases/{alias.replace(' ', '%20')}"
    assert (await server.call("PUT", path, {"revision": revision})).status == status


async def test_live_cannot_be_deleted_but_moved(server: Control) -> None:
    await server.deploy(memory=128)
    await server.deploy(memory=256)
    assert (await server.call("DELETE", "/v1/functions/hello/aliases/live")).status == 409
    assert (await server.call("PUT", "/v1/functions/hello/aliases/live", {"revision": 1})).status == 200
    assert (await server.call("GET", "/v1/functions/hello")).json()["revision"] == 1


async def test_a_deleted_function_leaves_nothing_and_its_numbers_go_on(server: Control) -> None:
    schedule = {"name": "tick", "cron": "* * * * *"}
    await server.deploy(schedule=[schedule])
    assert (await server.call("DELETE", "/v1/functions/hello")).status == 204
    assert (await server.call("GET", "/v1/functions/hello")).status == 404
    assert (await server.call("DELETE", "/v1/functions/hello")).status == 404
    assert (await server.call("GET", "/function/hello", public=True)).status == 404
    assert (await server.call("GET", "/v1/schedules")).json() == {"schedules": []}
    assert server.worker.forgotten == [("default", "hello")]
    assert (await server.deploy())["revision"] == 2


@pytest.mark.parametrize(
    ("spec", "image", "status", "words"),
    [
        ({"name": "other"}, f"hello@{DIGEST}", 400, "the URL's is hello"),
        ({"name": "hello", "memroy": 1}, f"hello@{DIGEST}", 400, "unknown key memroy"),
        ({"name": "hello"}, "", 400, "needs an image"),
        ({"name": "hello"}, f"elsewhere.example/hello@{DIGEST}", 400, "this server's registry only"),
        ({"name": "hello"}, f"gone@{DIGEST}", 400, "no image gone"),
        ({"name": "hello"}, "Not Valid!", 400, "not valid"),
        ({"name": "hello", "trigger": [{"watch": "/etc"}]}, f"hello@{DIGEST}", 400, "must not be watched"),
        ("hello", f"hello@{DIGEST}", 400, "spec"),
    ],
)
async def test_a_deploy_that_cannot_be_is_refused_in_clear_words(
    server: Control, spec: object, image: str, status: int, words: str
) -> None:
    server.images.gone.add("gone")
    answered = await server.call("PUT", "/v1/functions/hello", {"spec": spec, "image": image})
    assert answered.status == status
    assert words in answered.json()["error"]["message"]
    assert (await server.call("GET", "/v1/functions")).json() == {"functions": []}


async def test_a_tag_is_pinned_by_its_digest(server: Control) -> None:
    body = {"spec": {"name": "hello"}, "image": "127.0.0.1:5000/hello:latest"}
    assert (await server.call("PUT", "/v1/functions/hello", body)).json()["image"] == f"hello@{DIGEST}"


async def test_deploys_of_one_function_take_turns(tmp_path: Path) -> None:
    worker = FakeWorker(start_seconds=0.05)
    async with control(tmp_path, worker) as server:
        done = await asyncio.gather(*(server.deploy(memory=128 + n) for n in range(4)))
        assert sorted(d["revision"] for d in done) == [1, 2, 3, 4]
        assert (await server.call("GET", "/v1/functions/hello")).json()["revision"] == 4


async def test_a_deploy_goes_on_where_its_client_hangs_up(tmp_path: Path) -> None:
    async with control(tmp_path, FakeWorker(start_seconds=0.2)) as server:
        task = asyncio.create_task(server.deploy())
        await until(lambda: server.worker.checked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.gateway.router.state("default", "hello"))


async def test_images_of_kept_revisions_are_held(server: Control) -> None:
    await server.deploy()
    body = {"spec": {"name": "hello"}, "image": f"hello@{OTHER}"}
    await server.call("PUT", "/v1/functions/hello", body)
    assert await server.gateway.deployer.held() == {f"hello@{DIGEST}": ["hello@v1"], f"hello@{OTHER}": ["hello@v2"]}


async def test_an_image_that_was_deleted_before_its_deploy_held_it_does_not_go_live(
    server: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its digest and the deploy's turn a delete may come: nobody had said that it is needed."""
    deployer, real = server.gateway.deployer, server.images.manifest

    async def manifest(reference: str, architecture: str) -> Manifest:
        if await deployer.held():  # from here on a delete is refused
            server.images.gone.add("hello")
        return await real(reference, architecture)

    monkeypatch.setattr(server.images, "manifest", manifest)
    refused = await server.call("PUT", "/v1/functions/hello", {"spec": {"name": "hello"}, "image": f"hello@{DIGEST}"})
    assert (refused.status, refused.json()["error"]["code"]) == (400, "ImageUnusable")
    assert server.gateway.router.state("default", "hello") is None
    assert await deployer.held() == {}


async def test_environment_values_are_the_administrators(server: Control) -> None:
    await server.deploy(env={"KEY": "canary-value"})
    assert (await server.call("GET", "/v1/functions/hello")).json()["spec"]["env"] == {"KEY": "canary-value"}
    for role in ("viewer", "deployer"):
        token = await server.a_token(role)
        answered = await server.call("GET", "/v1/functions/hello", token=token)
        assert answered.json()["spec"]["env"] == {"KEY": "***"}
        for path in ("/v1/functions", "/v1/functions/hello/revisions", "/v1/schedules", "/metrics"):
            assert b"canary-value" not in (await server.call("GET", path, token=token)).body


async def test_an_unknown_function_names_what_is_close_on_the_api_only(server: Control) -> None:
    await server.deploy()
    assert "hello" in (await server.call("GET", "/v1/functions/helo")).json()["error"]["hint"]
    assert b"hello" not in (await server.call("GET", "/function/helo", public=True)).body


async def test_scale_says_how_many_now_within_max(server: Control) -> None:
    await server.deploy(scale={"max": 5})
    assert (await server.call("POST", "/v1/functions/hello/scale", {"instances": 2})).json() == {"instances": 2}
    assert server.worker.scaled[-1][1] == 2
    assert (await server.call("POST", "/v1/functions/hello/scale", {"instances": 6})).status == 400
    assert len((await server.call("GET", "/v1/functions/hello/instances")).json()["instances"]) == 2


async def test_logs_are_lines_of_json(server: Control) -> None:
    await server.deploy()
    server.worker.records = [LogRecord(1.0, "first"), LogRecord(2.0, "line\nbreak", request_id="r1")]
    answered = await server.call("GET", "/v1/functions/hello/logs?since=0&limit=5")
    assert answered.headers["Content-Type"] == "application/x-ndjson"
    assert answered.body.count(b"\n") == 2
    assert b'"request_id": "r1"' in answered.body
    server.worker.records += [LogRecord(3.0, "odd", "stderr", 1, "i1"), LogRecord(4.0, "odd", "stderr", 1, "i2")]
    for query, messages in (
        ("instance=i1", ["odd"]),
        ("until=3", ["first", "line\nbreak"]),
        ("stream=stderr", ["odd"] * 2),
    ):
        lines = (await server.call("GET", f"/v1/functions/hello/logs?{query}")).body.splitlines()
        assert [json.loads(line)["message"] for line in lines] == messages
    for query in ("limit=0", "limit=9999999999", "limit=x", "since=nan", "since=x", "until=inf", "stream=all",
                  "follow=1&until=9"):  # fmt: skip
        assert (await server.call("GET", f"/v1/functions/hello/logs?{query}")).status == 400


async def test_an_unknown_on_failure_function_is_a_warning(server: Control) -> None:
    done = await server.deploy(**{"async": {"on_failure": "catcher"}})
    assert "catcher" in done["warnings"][0]


async def test_a_folder_that_is_not_there_is_a_warning_and_the_functions_state(server: Control, tmp_path: Path) -> None:
    done = await server.deploy(trigger=[{"watch": f"{tmp_path.parent}/nowhere"}])
    assert "cannot be read" in done["warnings"][0]
    await until(lambda: server.gateway.folders.problems())
    assert "cannot be read" in (await server.call("GET", "/v1/functions/hello")).json()["reason"]
    assert "cannot be read" in (await server.call("GET", "/v1/triggers")).json()["triggers"][0]["problem"]
