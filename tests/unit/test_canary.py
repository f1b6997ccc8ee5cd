"""Two revisions behind one alias, over a whole gateway: who gets which, and the way back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.errors import FunctionError
from faas.leases import HttpRequest, HttpResponse, InvocationResult
from faas.protocol import Revision
from tests.support.control import Answered, Control, control, until
from tests.support.data_path import sample
from tests.support.fake_worker import FakeWorker, stream

LIVE = "/v1/functions/hello/aliases/live"


async def numbered(revision: Revision, event: bytes) -> InvocationResult:
    """The number of the revision that answers; version 2 fails where it is told to."""
    if b"fail" in event and revision.key.number == 2:
        raise FunctionError("version 2 fails")
    return InvocationResult(json.dumps({"statusCode": 200, "body": str(revision.key.number)}).encode())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    """Revisions 1 and 2 of `hello`; live is 1."""
    async with control(tmp_path, FakeWorker(on_invoke=numbered)) as running:
        await two(running)
        yield running


async def two(server: Control) -> None:
    await server.deploy()
    await server.deploy(memory=256)
    assert (await server.call("POST", "/v1/functions/hello/rollback", {"to": 1})).status == 200


async def weigh(server: Control, percent: float, /, **options: Any) -> Answered:
    return await server.call("PUT", LIVE, {"weights": {"v2": percent}, **options})


def draws(server: Control, *values: float) -> None:
    """What chance says, for ever."""
    rest = list(values)
    server.gateway.path.canaries._draw = lambda: rest.pop(0) if len(rest) > 1 else rest[0]


async def get(server: Control, headers: dict[str, str] | None = None, query: str = "", **options: Any) -> Answered:
    return await server.call("GET", f"/function/hello{query}", headers=headers, public=True, **options)


async def test_calls_are_shared_by_the_weight(server: Control) -> None:
    assert (await weigh(server, 30)).json()["weights"] == {"v2": 30}
    seen = Counter([(await get(server)).body for _ in range(400)])
    assert set(seen) == {b"1", b"2"}
    assert 60 <= seen[b"2"] <= 180  # 120 ± 6.5 standard deviations
    metrics = server.gateway.metrics
    for side, body in (("stable", b"1"), ("canary", b"2")):
        counted = sample(metrics, "faas_canary_requests_total", function="hello", side=side, status="success")
        assert counted == seen[body]
    labels = {"function": "hello", "qualifier": "live", "trigger": "http", "status": "success"}
    assert sample(metrics, "faas_invocations_total", **labels) == 400


async def test_api_calls_and_events_are_shared_too(server: Control) -> None:
    await weigh(server, 50)
    draws(server, 0.1)
    answered = await server.call("POST", "/v1/functions/hello/invocations", {"a": 1})
    assert answered.json()["body"] == "2"
    seen: list[int] = []

    async def told(revision: Revision, event: bytes) -> InvocationResult:
        seen.append(revision.key.number)
        return InvocationResult(b"{}")

    server.worker.on_invoke = told
    headers = {"X-Faas-Invocation-Type": "Event"}
    assert (await server.call("POST", "/v1/functions/hello/invocations", {"a": 1}, headers=headers)).status == 202
    await until(lambda: seen == [2])


async def test_http_functions_are_shared_too(server: Control) -> None:
    async def told(revision: Revision, request: HttpRequest) -> HttpResponse:
        body = str(revision.key.number).encode()
        return HttpResponse(503, (("Content-Length", str(len(body))),), stream(body))

    server.worker.on_request = told
    await server.deploy("web", interface="http")
    await server.deploy("web", interface="http", memory=256)
    await server.call("POST", "/v1/functions/web/rollback", {"to": 1})
    await server.call("PUT", "/v1/functions/web/aliases/live", {"weights": {"v2": 50}})
    draws(server, 0.1)
    assert (await server.call("GET", "/function/web", public=True)).body == b"2"
    counted = sample(
        server.gateway.metrics, "faas_canary_requests_total", function="web", side="canary", status="error"
    )
    assert counted == 1


async def test_a_tester_with_credentials_chooses_and_a_stranger_does_not(server: Control) -> None:
    await weigh(server, 0)
    asked = {"X-Faas-Revision": "v2"}
    assert (await get(server, asked)).body == b"1"
    assert (await server.call("GET", "/function/hello", headers=asked)).body == b"2"
    refused = await server.call("GET", "/function/hello", headers={"X-Faas-Revision": "v9"})
    assert (refused.status, "v1 or v2" in refused.json()["error"]["hint"]) == (400, True)
    await weigh(server, 0, override=True)
    assert (await get(server, asked)).body == b"2"
    assert (await get(server, {"X-Faas-Revision": "2"})).body == b"2"
    assert (await get(server, {"X-Faas-Revision": "v3"})).status == 400


async def test_a_cookie_keeps_its_holder_on_one_side_through_changes_of_the_weight(server: Control) -> None:
    await weigh(server, 50, sticky="cookie")
    draws(server, 0.1)
    first = await get(server)
    assert first.body == b"2"
    cookie = first.headers["Set-Cookie"]
    for words in ("Path=/function/hello", "HttpOnly", "SameSite=Lax"):
        assert words in cookie
    assert "Secure" not in cookie  # plain HTTP: a browser would not send it back
    holder = {"Cookie": cookie.partition(";")[0]}
    draws(server, 0.9)
    assert (await get(server)).body == b"1"
    again = await get(server, holder)
    assert (again.body, "Set-Cookie" in again.headers) == (b"2", False)
    await weigh(server, 10)
    assert (await get(server, holder)).body == b"2"
    await server.call("PUT", LIVE, {"weights": {}})
    assert (await get(server, holder)).body == b"1"
    await weigh(server, 10, sticky="cookie")  # another canary: nobody is bound to it
    assert (await get(server, holder)).body == b"1"


async def test_a_cookie_that_is_not_ours_says_nothing(server: Control) -> None:
    await weigh(server, 50, sticky="cookie")
    draws(server, 0.9)
    cookie = (await get(server)).headers["Set-Cookie"].partition(";")[0]
    name, _, value = cookie.partition("=")
    mac = value.partition(".")[2]
    draws(server, 0.9)
    for forged in ("canary", "stable.", "canary.0", "canary.é", "x." + "0" * 32, f"canary.{mac}"):
        assert (await get(server, {"Cookie": f"{name}={forged}"})).body == b"1"


async def test_a_header_field_keeps_its_value_on_one_side_and_more_weight_only_adds(server: Control) -> None:
    await weigh(server, 30, sticky="header:X-User")
    sides = {user: (await get(server, {"X-User": user})).body for user in map(str, range(60))}
    assert set(sides.values()) == {b"1", b"2"}
    assert {user: (await get(server, {"X-User": user})).body for user in sides} == sides
    await weigh(server, 60)
    after = {user: (await get(server, {"X-User": user})).body for user in sides}
    assert all(after[user] == b"2" for user, body in sides.items() if body == b"2")
    assert list(after.values()).count(b"2") > list(sides.values()).count(b"2")


async def test_a_canary_that_fails_is_taken_back_and_says_so_after_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path, FakeWorker(on_invoke=numbered)) as server:
        await two(server)
        await weigh(server, 50, rollback="errors=10%,least=10")
        draws(server, *([0.1, 0.9] * 10))
        for _ in range(18):
            await get(server, query="?fail")
        await server.gateway.canaries.tick()
        assert (await server.call("GET", "/v1/functions/hello")).json()["canaries"]["live"]["reason"] == ""
        draws(server, 0.1)
        assert (await get(server, query="?fail")).status == 502
        await until(lambda: sample(server.gateway.metrics, "faas_canary_rollbacks_total", function="hello"))
        assert (await get(server, query="?fail")).body == b"1"
        refused = await server.call("PUT", LIVE, {"promote": True})
        assert (refused.status, "was taken back" in refused.json()["error"]["message"]) == (409, True)
    async with control(tmp_path, FakeWorker(on_invoke=numbered)) as server:
        canary = (await server.call("GET", "/v1/functions/hello")).json()["canaries"]["live"]
        assert "100.0 % of its 10 calls failed, 0.0 % of the stable revision's 9" in canary["reason"]
        assert canary["weights"] == {"v2": 0}
        assert canary["ended_at"]
        draws(server, 0.1)
        assert (await get(server)).body == b"1"
        assert (await weigh(server, 50)).json()["ended_at"] is None  # begun anew
        assert (await get(server)).body == b"2"


async def test_promote_moves_the_alias_and_ends_the_canary(server: Control) -> None:
    await weigh(server, 10)
    promoted = (await server.call("PUT", LIVE, {"promote": True})).json()
    assert promoted == {"alias": "live", "revision": 2}
    assert (await server.call("GET", "/v1/functions/hello")).json()["canaries"] == {}
    assert (await get(server)).body == b"2"


async def test_a_deploy_ends_the_canary_and_its_revision_is_kept_while_it_runs(server: Control) -> None:
    await server.call("PUT", "/v1/functions/hello/aliases/prod", {"revision": 1, "weights": {"v2": 10}})
    await weigh(server, 10)
    for memory in range(300, 312):
        await server.deploy(memory=memory)
    described = (await server.call("GET", "/v1/functions/hello")).json()
    assert described["canaries"]["prod"]["weights"] == {"v2": 10}
    assert "live" not in described["canaries"]
    kept = [r["number"] for r in (await server.call("GET", "/v1/functions/hello/revisions")).json()["revisions"]]
    assert 2 in kept
    assert 1 in kept
    assert 3 not in kept
    assert [key.number for key in server.worker.retired] == [3, 4]


REFUSED: list[tuple[Any, int, str]] = [
    ({"weights": {"v1": 10}}, 400, "live is v1 already"),
    ({"weights": {"v9": 10}}, 404, "no version 9"),
    ({"weights": {"v2": 10}, "sticky": "ip"}, 400, "sticky must be"),
    ({"weights": {"v2": 10}, "rollback": "often"}, 400, "rollback must be"),
    ({"weights": {"v2": 10}, "override": "yes"}, 400, "override must be"),
    ({"sticky": "cookie"}, 400, "revision must be"),
    ({"revision": 1, "sticky": "cookie"}, 400, "sticky goes with weights"),
    ({"promote": True, "revision": 1}, 400, "promote is true, and alone"),
    ({"promote": True}, 404, "nothing to promote"),
    ({"weigths": {}}, 400, "unknown key"),
]


async def test_what_makes_no_sense_is_refused(server: Control) -> None:
    for body, status, words in REFUSED:
        answered = await server.call("PUT", LIVE, body)
        assert (answered.status, words in answered.json()["error"]["message"]) == (status, True), answered.body
    assert (await server.call("GET", "/v1/functions/hello")).json()["canaries"] == {}


async def test_both_revisions_have_instances_and_min_is_the_live_ones(server: Control) -> None:
    await weigh(server, 50)
    draws(server, 0.1, 0.9, 0.1)
    for _ in range(3):
        await get(server)
    await server.gateway.scaler.tick(server.gateway.path.canaries._clock())
    state = server.gateway.router.state("default", "hello")
    assert state is not None
    for revision in state.revisions.values():
        assert server.worker.stats(revision.key).instances == 1


async def test_two_revisions_that_ask_callers_for_different_things_are_not_mixed(server: Control) -> None:
    await server.deploy(public=False, auth={"key": True})
    assert (await server.call("PUT", LIVE, {"revision": 3})).status == 200
    await server.deploy(public=False, auth={"token": True})
    assert (await server.call("PUT", LIVE, {"revision": 3})).status == 200
    refused = await server.call("PUT", LIVE, {"weights": {"v4": 10}})
    assert (refused.status, "[auth]" in refused.body.decode()) == (409, True)
