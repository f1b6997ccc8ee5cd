"""The rest of the control API: tokens, invocations, dead letters, schedules, runtimes, the server about itself."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.auth import hash_token
from faas.errors import OutOfMemory, TimedOut, Unavailable
from faas.leases import InvocationResult, Trigger
from faas.protocol import (
    LogRecord,
    Revision,
)
from faas.state.session import Transaction
from gateway.store import dead_letters
from gateway.store.invocations import QueuedEvent
from tests.support.control import Control, control, until
from tests.support.fake_worker import FakeWorker


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        await running.deploy()
        yield running


async def test_a_token_is_shown_once_and_kept_as_its_hash(server: Control, tmp_path: Path) -> None:
    made = await server.call("POST", "/v1/tokens", {"name": "ci", "role": "deployer"})
    token = made.json()["token"]
    assert made.status == 201
    assert (await server.call("GET", "/v1/info", token=token)).status == 200
    listed = await server.call("GET", "/v1/tokens")
    assert [row["name"] for row in listed.json()["tokens"]] == ["ci"]
    assert token.encode() not in listed.body
    assert hash_token(token).encode() not in listed.body
    stored = await asyncio.to_thread(lambda: b"".join(path.read_bytes() for path in tmp_path.glob("faas.db*")))
    assert token.encode() not in stored
    assert hash_token(token).encode() in stored


async def test_a_tokens_patterns_are_listed_and_survive_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        body = {"name": "ci", "role": "deployer", "repositories": ["team/*", "app"]}
        token = (await server.call("POST", "/v1/tokens", body)).json()["token"]
    async with control(tmp_path) as server:
        (row,) = (await server.call("GET", "/v1/tokens")).json()["tokens"]
        assert row["repositories"] == ["team/*", "app"]
        principal = await server.gateway.tokens.authenticate(token)
        assert principal is not None
        assert principal.repositories == ("team/*", "app")


async def test_a_revoked_token_opens_nothing_and_tokens_survive_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        kept, revoked = await server.a_token("viewer"), await server.a_token("viewer")
        assert (await server.call("DELETE", "/v1/tokens/viewer-1")).status == 204
        assert (await server.call("DELETE", "/v1/tokens/viewer-1")).status == 404
        assert (await server.call("GET", "/v1/info", token=revoked)).status == 401
    async with control(tmp_path) as server:
        assert (await server.call("GET", "/v1/info", token=kept)).status == 200
        assert (await server.call("GET", "/v1/info", token=revoked)).status == 401


async def test_a_token_whose_revocation_failed_is_dead_at_once_and_can_be_revoked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(tx: Transaction, name: str) -> None:
        raise Unavailable("the disk is full")

    async with control(tmp_path) as server:
        token = await server.a_token("viewer")
        with monkeypatch.context() as broken:
            broken.setattr("gateway.store.tokens.remove", fails)
            assert (await server.call("DELETE", "/v1/tokens/viewer-0")).status == 503
        assert (await server.call("GET", "/v1/info", token=token)).status == 401
        (row,) = (await server.call("GET", "/v1/tokens")).json()["tokens"]
        assert row["name"] == "viewer-0", "what would be back after a restart is shown"
        assert (await server.call("POST", "/v1/tokens", {"name": "viewer-0", "role": "viewer"})).status == 409
        assert (await server.call("DELETE", "/v1/tokens/viewer-0")).status == 204
        assert (await server.call("DELETE", "/v1/tokens/viewer-0")).status == 404
    async with control(tmp_path) as server:
        assert (await server.call("GET", "/v1/info", token=token)).status == 401


async def test_changes_of_tokens_end_although_their_client_has_gone(server: Control) -> None:
    token = await server.a_token("viewer")

    async def names() -> list[str]:
        return [row["name"] for row in (await server.call("GET", "/v1/tokens")).json()["tokens"]]

    async with server.gateway.database.write():  # both wait for their turn to write
        calls = [
            asyncio.create_task(server.call("DELETE", "/v1/tokens/viewer-0")),
            asyncio.create_task(server.call("POST", "/v1/tokens", {"name": "new", "role": "viewer"})),
        ]

        async def revoked() -> bool:
            return (await server.call("GET", "/v1/info", token=token)).status == 401

        await until(revoked)
        await asyncio.sleep(0.1)
        for call in calls:
            call.cancel()
        await asyncio.sleep(0.1)

    async def ended() -> bool:
        return await names() == ["new"]

    await until(ended)
    assert (await server.call("DELETE", "/v1/tokens/new")).status == 204


async def test_a_namespaces_dead_letters_are_not_hidden_behind_anothers(server: Control) -> None:
    def letter(number: int, namespace: str, function: str) -> QueuedEvent:
        return QueuedEvent(f"{namespace}-{number}", namespace, function, Trigger.ASYNC)

    async with server.gateway.database.write() as tx:
        await tx.run_sync(dead_letters.add, letter(0, "team", "mine"), 1.0)
        for number in range(1001):
            await tx.run_sync(dead_letters.add, letter(number, "default", f"f{number % 2}"), 2.0)
    token = await server.a_token("viewer", "team")
    listed = (await server.call("GET", "/v1/dead-letters", token=token)).json()["dead_letters"]
    assert [row["id"] for row in listed] == ["team-0"]


async def test_a_deleted_function_leaves_no_series_behind(tmp_path: Path) -> None:
    async def fails(revision: Revision, event: bytes) -> InvocationResult:
        raise TimedOut

    async with control(tmp_path, FakeWorker(fails)) as server:
        for name in ("gone", "gone2"):
            await server.deploy(name)
            assert (await server.call("GET", f"/function/{name}", public=True)).status == 504
        metrics = server.gateway.metrics
        for label in ("gone", "gone2"):
            metrics.throttles.labels(label, "why").inc()
            metrics.cold_start.labels(label, "init").observe(1)
            metrics.cold_starts.labels(label, "stem").inc()
            metrics.init_duration.labels(label).observe(1)
            metrics.billed_gb_seconds.labels(label).inc()
            metrics.dead_letters.labels(label).inc()
            metrics.schedule_missed.labels(f"{label}/tick").inc()
        kept = metrics.render().count(b'"gone2')
        assert (await server.call("DELETE", "/v1/functions/gone")).status == 204
        text = metrics.render()
    assert b'"gone"' not in text
    assert b'"gone/' not in text
    assert text.count(b'"gone2') == kept


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "admin", "role": "viewer"}, 409),
        ({"name": "Upper", "role": "viewer"}, 400),
        ({"name": "x", "role": "anonymous"}, 400),
        ({"name": "x", "role": "god"}, 400),
        ({"name": "x"}, 400),
        ({"name": "x", "role": "viewer", "namespace": "No!"}, 400),
        ({"name": "x", "role": "admin", "functions": ["hello"]}, 400),
        ({"name": "x", "role": "viewer", "functions": ["No!"]}, 400),
        ({"name": "x", "role": "caller", "functions": "hello"}, 400),
        ({"name": "x", "role": "caller", "scope": "all"}, 400),
        ({"name": "x", "role": "viewer", "repositories": "team/*"}, 400),
        ({"name": "x", "role": "viewer", "repositories": [1]}, 400),
        ({"name": "x", "role": "viewer", "repositories": ["No!"]}, 400),
        ({"name": "x", "role": "admin", "repositories": ["team/*"]}, 400),
        ({"name": "x", "role": "viewer", "namespace": "team", "repositories": ["other/*"]}, 400),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(server: Control, body: dict[str, Any], status: int) -> None:
    assert (await server.call("POST", "/v1/tokens", body)).status == status


async def test_a_token_works_as_basic_password_with_its_own_name_only(server: Control) -> None:
    token = await server.a_token("viewer")

    async def basic(user: str, password: str) -> int:
        value = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        return (await server.call("GET", "/v1/info", token="", headers={"Authorization": value})).status

    assert await basic("viewer-0", token) == 200
    assert await basic("admin", server.token) == 200
    assert await basic("admin", token) == 401
    assert await basic("viewer-0", server.token) == 401


def test_the_administrators_file_is_private(tmp_path: Path) -> None:
    from faas.auth import token_in

    path = tmp_path / "admin-token"
    token = token_in(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_in(path) == token


async def test_an_invocation_answers_with_the_functions_payload(server: Control) -> None:
    answered = await server.call("POST", "/v1/functions/hello/invocations", {"a": 1})
    assert (answered.status, answered.json()) == (200, {"a": 1})
    assert answered.headers["X-Request-Id"]
    assert (await server.call("POST", "/v1/functions/hello:v1/invocations")).json() == {}
    assert (await server.call("POST", "/v1/functions/hello:v9/invocations")).status == 404
    assert (await server.call("POST", "/v1/functions/hello/invocations", b"{not json")).status == 400
    assert (await server.call("POST", "/v1/functions/hello/invocations", b'"' + b"x" * 6_291_556)).status == 413


@pytest.mark.parametrize(("kind", "status"), [("DryRun", 204), ("Event", 202), ("Sideways", 400)])
async def test_an_invocation_has_a_type(server: Control, kind: str, status: int) -> None:
    headers = {"X-Faas-Invocation-Type": kind}
    ran = len(server.worker.invocations)
    answered = await server.call("POST", "/v1/functions/hello/invocations", {"a": 1}, headers=headers)
    assert answered.status == status
    if kind == "Event":
        path = f"/v1/invocations/{answered.json()['id']}"

        async def ended() -> Any:
            found = (await server.call("GET", path)).json()
            return found if found["status"] == "success" else None

        assert (await until(ended))["function"] == "hello"
        assert (await server.call("GET", "/v1/invocations/nothing")).status == 404
    else:
        assert len(server.worker.invocations) == ran


async def test_a_function_that_raised_is_a_200_that_says_so(tmp_path: Path) -> None:
    async def raises(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(b'{"errorType":"ValueError","errorMessage":"no"}', error_type="Value\nError")

    async with control(tmp_path, FakeWorker(raises)) as server:
        await server.deploy()
        answered = await server.call("POST", "/v1/functions/hello/invocations")
        assert (answered.status, answered.headers["X-Error-Type"]) == (200, "ValueError")


@pytest.mark.parametrize(
    ("error", "status", "kind"), [(TimedOut(), 504, "Sandbox.Timedout"), (OutOfMemory(), 502, "Runtime.OutOfMemory")]
)
async def test_a_function_that_was_killed_is_an_error(tmp_path: Path, error: Exception, status: int, kind: str) -> None:
    async def killed(revision: Revision, event: bytes) -> InvocationResult:
        raise error

    async with control(tmp_path, FakeWorker(killed)) as server:
        await server.deploy()
        answered = await server.call("POST", "/v1/functions/hello/invocations")
        assert (answered.status, answered.headers["X-Error-Type"]) == (status, kind)


async def test_the_end_of_the_log_comes_with_the_answer_where_it_is_asked_for(tmp_path: Path) -> None:
    async def speaks(revision: Revision, event: bytes) -> InvocationResult:
        request_id = worker.invocations[-1].request_id
        worker.records = [
            LogRecord(1.0, "x" * 5000, request_id=request_id),
            LogRecord(2.0, "REPORT RequestId: 1", request_id=request_id),
            LogRecord(3.0, "another's", request_id="other"),
        ]
        return InvocationResult(b"1")

    worker = FakeWorker(speaks)
    async with control(tmp_path, worker) as server:
        await server.deploy()
        answered = await server.call("POST", "/v1/functions/hello/invocations", headers={"X-Faas-Log-Type": "Tail"})
        tail = base64.b64decode(answered.headers["X-Faas-Log-Result"])
        assert len(tail) == 4096
        assert tail.endswith(b"x\nREPORT RequestId: 1\n")


async def test_a_streamed_answer_carries_its_request_id(server: Control) -> None:
    answered = await server.call("GET", "/v1/functions/hello/logs?since=0")
    assert answered.headers["Transfer-Encoding"] == "chunked", "streamed"
    assert answered.headers["X-Request-Id"]


async def test_schedules_show_their_next_three_fires(server: Control) -> None:
    await server.deploy(schedule=[{"name": "tick", "cron": "0 3 * * *", "timezone": "Europe/Berlin"}])
    (row,) = (await server.call("GET", "/v1/schedules?namespace=default")).json()["schedules"]
    assert (row["function"], row["name"], row["last"], row["enabled"]) == ("hello", "tick", None, True)
    assert len(row["next"]) == 3
    path = "/v1/functions/hello/schedules/tick/history"
    assert (await server.call("GET", path)).json() == {"fires": []}
    assert (await server.call("GET", path.replace("tick", "tock"))).status == 404


async def test_a_rollback_brings_back_the_schedules_of_its_revision(server: Control) -> None:
    await server.deploy(schedule=[{"name": "tick", "cron": "0 3 * * *"}])
    await server.call("POST", "/v1/functions/hello/rollback")
    assert (await server.call("GET", "/v1/schedules")).json()["schedules"] == []
    await server.call("POST", "/v1/functions/hello/rollback", {"to": 2})
    assert len((await server.call("GET", "/v1/schedules")).json()["schedules"]) == 1


async def test_runtime_bases_are_listed_and_ensured(server: Control) -> None:
    for verb, path in (("GET", "/v1/runtimes"), ("PUT", "/v1/runtimes/python")):
        assert "manylinux" in (await server.call(verb, path)).body.decode()
    for name in ("provided", "ruby", "python9"):
        assert (await server.call("PUT", f"/v1/runtimes/{name}")).status == 400


async def test_the_server_tells_about_itself(server: Control) -> None:
    assert (await server.call("GET", "/v1/info")).json() == {
        "version": "0.0-test",
        "public_url": "http://127.0.0.1:8080",
        "registry": "127.0.0.1:5000",
        "api": "127.0.0.1:8081",
        "driver": "fake",
        "user": "admin",
    }
    assert (await server.call("GET", "/readyz", token="")).body == b"ok"
    server.gateway.ready = False
    assert (await server.call("GET", "/readyz", token="")).status == 503
    assert (await server.call("GET", "/healthz", token="")).body == b"ok"


@pytest.mark.parametrize("noun", ["restore"])
async def test_what_is_not_offered_says_so_by_name(server: Control, noun: str) -> None:
    for path in (f"/v1/{noun}", f"/v1/{noun}/x"):
        error = (await server.call("POST", path, {"a": 1})).json()["error"]
        assert error["code"] == "NotOffered"
        assert noun in error["message"]


@pytest.mark.parametrize(
    "path",
    ["/v1/functions/..%2f..%2fetc", "/v1/functions/%00", "/v1/functions/UPPER", "/v1/functions/a.b.c",
     "/v1/functions/a:v1", "/v1/functions/" + "a" * 300],
)  # fmt: skip
async def test_a_name_that_can_be_none_is_refused(server: Control, path: str) -> None:
    assert (await server.call("GET", path)).status == 400


async def test_the_description_is_json_that_names_every_parameter(server: Control) -> None:
    described = json.loads((await server.call("GET", "/v1/openapi.json")).body)
    for path, operations in described["paths"].items():
        for operation in operations.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert all("{" + name + "}" in path for name in named)
            assert path.count("{") == len(named)
