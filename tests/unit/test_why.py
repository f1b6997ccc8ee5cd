"""What `GET /v1/functions/NAME` says of failures: of deploys, of starts, of invocations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faas.protocol import Failure, Health, RevisionKey
from tests.support.control import DIGEST, Control, control

KEY = RevisionKey("default", "hello", 1)


async def described(server: Control, name: str = "hello") -> Any:
    answered = await server.call("GET", f"/v1/functions/{name}")
    assert answered.status == 200, answered.body
    return answered.json()


async def try_deploy(server: Control, name: str = "hello", **spec: Any) -> Any:
    body = {"spec": {"name": name, **spec}, "image": f"{name}@{DIGEST}"}
    return await server.call("PUT", f"/v1/functions/{name}", body)


async def test_a_deploy_that_failed_is_told_until_one_succeeds_and_over_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        server.worker.fails = "No module named 'x'"
        refused = await try_deploy(server, memory=256)
        assert refused.status == 502
        page = await described(server)
        assert (page["ready"], page["reason"]) == (True, "DeployFailed: No module named 'x'; v1 stays live")
        assert page["failed_deploy"]["log_tail"] == "No module named 'x'"
        assert page["failed_deploy"]["request_id"] == refused.json()["error"]["request_id"]
    async with control(tmp_path) as server:
        assert (await described(server))["failed_deploy"]["code"] == "Runtime.InitError"
        await server.deploy(memory=512)
        page = await described(server)
        assert (page["reason"], "failed_deploy" in page) == ("", False)
    async with control(tmp_path) as server:
        assert "failed_deploy" not in await described(server)


async def test_a_function_that_never_came_to_be_says_why_its_first_deploy_failed(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        server.worker.fails = "the handler was not found"
        await try_deploy(server, "first")
        told = (await server.call("GET", "/v1/functions/first")).json()["error"]
        assert told["hint"] == "its first deploy failed: the handler was not found"


async def test_what_the_caller_may_not_do_is_no_failed_deploy(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        viewer = await server.a_token("viewer")
        body = {"spec": {"name": "hello"}, "image": f"hello@{DIGEST}"}
        assert (await server.call("PUT", "/v1/functions/hello", body, token=viewer)).status == 403
        assert (await described(server))["reason"] == ""


async def test_a_list_says_whether_each_function_is_ready_and_a_page_shows_its_failures(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        await server.deploy("other")
        start = Failure(1.0, 1, "i1", "Runtime.InitError", "no handler", "name it", log_tail="Traceback")
        call = Failure(2.0, 1, "i2", "Sandbox.Timedout", "Task timed out", request_id="r-1")
        server.worker.healths[KEY] = Health(5, 5, 1.0, start, 0, (start, call))
        await server.gateway.scaler.set_now(server.gateway.router.resolve("default", "hello").revision, 0)
        rows = (await server.call("GET", "/v1/functions")).json()["functions"]
        assert [(one["name"], one["ready"], one["reason"].partition(":")[0]) for one in rows] == [
            ("hello", False, "CrashLoop"),
            ("other", True, ""),
        ]
        page = await described(server)
        assert [(one["code"], one["request_id"]) for one in page["failures"]] == [
            ("Sandbox.Timedout", "r-1"),
            ("Runtime.InitError", ""),
        ]
        ready = page["conditions"][0]
        assert (ready["type"], ready["status"], ready["since"]) == ("Ready", "False", "1970-01-01T00:00:01.000Z")


async def test_an_image_that_is_gone_is_said_and_so_is_maintenance(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        server.images.gone.add("hello")
        assert (await described(server))["reason"].startswith("ImageGone: hello@sha256:")
        await server.call("PUT", "/v1/maintenance/hello", json.dumps({"message": "later"}).encode())
        page = await described(server)
        assert (page["ready"], page["reason"]) == (False, "Maintenance: callers hear 503: later")
