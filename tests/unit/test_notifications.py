"""`/v1/notifications` on a whole gateway: who may, what is shown, and what of a real server's facts comes through."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from faas.leases import InvocationResult, Report
from faas.protocol import Revision, RevisionKey
from gateway.backup import Outcome
from gateway.notify import facts
from gateway.notify.keeper import Keeper
from gateway.notify.subjects import Kind
from tests.support.control import Control, control, serving, until
from tests.support.fake_worker import FakeWorker

DAY = 86_400.0
HOOK = {"webhook": {"url": "https://hooks.example.com/services/all-that-guards-it"}}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path, private_notifications=True) as running:
        yield running


async def put(server: Control, name: str = "ops", body: Any = HOOK, status: int = 201, **more: Any) -> Any:
    answered = await server.call("PUT", f"/v1/notifications/{name}", {**body, **more})
    assert answered.status == status, answered.body
    return answered.json()


async def test_a_webhooks_own_secret_is_shown_once_kept_sealed_and_goes_with_it(server: Control) -> None:
    made = await put(server)
    assert server.gateway.secrets.value("default", "notify-ops").reveal() == made["secret"]
    assert len(made["secret"]) >= 43
    assert "secret" not in await put(server, status=200, errors=10), "it goes on with what its receiver knows"
    listed = await server.call("GET", "/v1/notifications")
    (shown,) = listed.json()["targets"]
    assert shown == (await server.call("GET", "/v1/notifications/ops")).json()
    assert (shown["errors"], shown["webhook"]["url"]) == (10, "https://hooks.example.com/…")
    for private in (made["secret"], "all-that-guards-it"):
        assert private.encode() not in listed.body
    kept = await server.call("DELETE", "/v1/secrets/notify-ops")
    assert (kept.status, "used by the notifications of ops" in kept.json()["error"]["message"]) == (409, True)
    assert (await server.call("DELETE", "/v1/notifications/ops")).status == 204
    assert (await server.call("GET", "/v1/secrets/notify-ops")).status == 404
    assert (await server.call("POST", "/v1/notifications/ops/test", {})).status == 404


async def test_a_secret_that_it_names_must_be_there_and_one_of_others_is_not_taken(server: Control) -> None:
    body = {"webhook": {"url_secret": "hook", "signing_secret": "key"}}
    refused = await put(server, body=body, status=400)
    assert refused["error"]["hint"] == "faas secret set hook"
    for name in ("hook", "key", "notify-ops"):
        await server.call("PUT", f"/v1/secrets/{name}", {"value": "https://hooks.example.com/"})
    assert "secret" not in await put(server, body=body)
    await server.call("DELETE", "/v1/notifications/ops")
    assert (await server.call("GET", "/v1/secrets/key")).status == 200, "it was not made for the target"
    assert "there is a secret notify-ops already" in (await put(server, status=409))["error"]["message"]


async def test_a_namespaces_administrator_has_its_targets_and_none_that_hear_of_others(server: Control) -> None:
    await put(server, "all.team", everywhere=True)
    await put(server, "own.team")
    await put(server, "other")
    admin, deployer = await server.a_token("admin", "team"), await server.a_token("deployer", "team")
    listed = (await server.call("GET", "/v1/notifications", token=admin)).json()["targets"]
    assert [one["name"] for one in listed] == ["own"]
    for method, path, body, status in (
        ("PUT", "/v1/notifications/mine.team", HOOK, 201),
        ("PUT", "/v1/notifications/mine.team", {**HOOK, "everywhere": True}, 403),
        ("PUT", "/v1/notifications/all.team", HOOK, 403),
        ("GET", "/v1/notifications/all.team", None, 403),
        ("DELETE", "/v1/notifications/all.team", None, 403),
        ("POST", "/v1/notifications/all.team/test", {}, 403),
        ("DELETE", "/v1/notifications/other", None, 403),
        ("PUT", "/v1/notifications/mine.team", {**HOOK, "on": ["disk"]}, 400),
        ("DELETE", "/v1/notifications/mine.team", None, 204),
    ):
        assert (await server.call(method, path, body, token=admin)).status == status, (method, path)
        assert (await server.call(method, path, body, token=deployer)).status == 403
    audited = (await server.call("GET", "/v1/audit?action=notifications*")).json()["records"]
    assert {"notifications.put", "notifications.delete"} <= {one["action"] for one in audited}


async def test_what_goes_wrong_on_a_server_is_told_with_the_command_that_shows_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        came.extend((await request.json())["items"])
        return web.Response()

    monkeypatch.setattr(facts, "room", lambda check, data: [])  # however full this machine's disk is
    app, worker = web.Application(), FakeWorker(failing)
    app.router.add_post("/", take)
    async with serving(app) as url, control(tmp_path, worker, private_notifications=True) as server:
        keeper = server.gateway.notifications
        keeper.facts.certificates = lambda: {"": time.time() + 2 * DAY, "far.example.com": time.time() + 90 * DAY}
        keeper.facts.backup = lambda: Outcome(0.0, "its client has gone")
        keeper.facts.damaged = damaged
        await put(server, body={"webhook": {"url": url}}, everywhere=True)
        await server.deploy("hello", **{"async": {"retries": 0, "on_failure": "dlq"}})
        await server.call("PUT", "/v1/budgets/most", {"requests": 2})
        await keeper.tick()  # from here on failures are counted
        for _ in range(4):
            assert (await server.call("GET", "/function/hello", public=True)).status == 502
        server.gateway.ledger.add(RevisionKey("default", "hello", 1), [Report(0.01, 0.01, 1 << 27, 0)] * 2)
        assert (await server.call("POST", "/async-function/hello", b"{}", public=True)).status == 202
        await until(lambda: letters(server))
        for _ in range(3):
            await keeper.tick()
        await until(lambda: told(keeper, came))
        looks = {one["kind"]: (one["subject"], one["look"]) for one in came}
        assert looks == {
            "function": ("hello", "faas logs hello --since 10m"),
            "dead-letter": ("hello", "faas dlq ls hello"),
            "budget": ("most", "faas budget ls"),
            "certificate": ("the listeners' own", "faas doctor"),
            "blob": ("registry", "faas image scrub"),
            "backup": ("backup", "faas backup DIR --verify"),
        }
        assert "ValueError" not in json.dumps(came), "what a function says is not passed on"


async def failing(revision: Revision, event: bytes) -> InvocationResult:
    return InvocationResult(b'{"errorType": "ValueError"}', error_type="ValueError")


async def damaged() -> list[str]:
    return ["sha256:" + "a" * 64]


async def letters(server: Control) -> Any:
    return (await server.call("GET", "/v1/dead-letters")).json()["dead_letters"]


async def told(keeper: Keeper, came: list[Any]) -> bool:
    """All kinds but the schedule and the disk; a target's minute is over at once here."""
    for watched in keeper.every():
        watched.next_at = 0.0
    await keeper.tick()
    return len({one["kind"] for one in came}) == 6


async def test_a_schedule_is_wrong_by_its_last_fire_time_that_has_ended(server: Control) -> None:
    await server.deploy("cron", schedule=[{"name": "nightly", "cron": "0 3 * * *"}])
    looked = server.gateway.notifications.facts

    async def after(*statuses: str) -> list[str]:
        async with server.gateway.database.write() as tx:
            await tx.exec_driver_sql("DELETE FROM schedule_fires")
            for number, status in enumerate(statuses):
                row = ("default", "cron", "nightly", number, status, "", None, None, "")
                await tx.exec_driver_sql("INSERT INTO schedule_fires VALUES (?,?,?,?,?,?,?,?,?)", row)
        return [one.subject.name for one in (await looked.look([Kind.SCHEDULE], 1.0))[Kind.SCHEDULE]]

    assert await after() == []
    assert await after("success", "error", "running") == ["cron/nightly"]
    assert await after("error", "missed", "skipped", "pending") == ["cron/nightly"]
    assert await after("error", "success", "skipped") == []
