"""Throttles, plans and circuits in front of functions, over HTTP; and whose a bucket is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from faas.auth import Principal, Role
from faas.errors import FunctionError, Throttled
from faas.leases import InvocationResult
from faas.protocol import Revision
from faas.rules.throttle import Per
from gateway.edge.caller import STRANGER, Caller
from gateway.edge.entry import Target, of_function
from gateway.edge.limits import Limits, whose
from gateway.router import Route
from tests.support.control import Answered, Control, control
from tests.support.data_path import data_path, no_guards, revision, sample
from tests.support.fake_worker import FakeWorker

ALICE = Caller(Principal("alice", Role.CALLER, "default"), key="k1")
TOKEN = Caller(Principal("deployer-1", Role.DEPLOYER, "*"))


@pytest.mark.parametrize(
    ("per", "caller", "address", "who"),
    [
        (Per.ALL, ALICE, "203.0.113.7", ""),
        (Per.KEY, ALICE, "203.0.113.7", "key k1"),
        (Per.KEY, TOKEN, "203.0.113.7", "name */deployer-1"),
        (Per.KEY, STRANGER, "203.0.113.7", "203.0.113.7"),
        (Per.ADDRESS, ALICE, "203.0.113.7", "203.0.113.7"),
        (Per.ADDRESS, STRANGER, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (Per.ADDRESS, STRANGER, "::ffff:203.0.113.7", "203.0.113.7"),
    ],
)
def test_a_bucket_belongs_to_all_to_a_key_or_to_an_address(per: Per, caller: Caller, address: str, who: str) -> None:
    assert whose(per, caller, address) == who


def admitted(limits: Limits, one: Revision, qualifier: str = "live", address: str = "203.0.113.7") -> bool:
    entry = of_function(Route(one, qualifier), Target("hello", "/", ""))
    try:
        limits.admit(entry, STRANGER, address)
    except Throttled:
        return False
    return True


async def test_a_deploy_leaves_buckets_as_they_are_unless_it_changes_the_rule() -> None:
    path, _ = data_path(FakeWorker())
    limits = no_guards(path).limits
    strict: Any = {"throttle": {"rate": 0.001, "burst": 1}}
    looser: Any = {"throttle": {"rate": 0.001, "burst": 2}}
    assert [admitted(limits, revision(number=1, **strict)) for _ in range(2)] == [True, False]
    assert not admitted(limits, revision(number=2, **strict))
    assert admitted(limits, revision(number=3, **looser))
    assert admitted(limits, revision("other", **strict))


async def call(server: Control, name: str = "hello", **headers: str) -> Answered:
    return await server.call("GET", f"/function/{name}", public=True, headers=headers)


async def test_beyond_the_burst_requests_hear_429_with_the_reason_and_when_to_come_back(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(throttle={"rate": 0.1, "burst": 2})
        server.gateway.edge.guards.limits._clock = lambda: 1000.0
        answers = [await call(server) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 429, 429]
        assert answers[2].headers["Reason"] == "FunctionInvocationRateLimitExceeded"
        assert answers[2].headers["Retry-After"] == "10"
        assert answers[2].json()["error"]["code"] == "Throttled"
        reason = "FunctionInvocationRateLimitExceeded"
        assert sample(server.gateway.metrics, "faas_throttles_total", function="hello", reason=reason) == 2
        assert len(server.worker.invocations) == 2
        queued = await server.call("POST", "/async-function/hello", public=True)
        assert queued.status == 429


async def test_an_address_that_is_throttled_is_nobody_elses(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(throttle={"rate": 0.01, "burst": 1, "per": "address"})
        first, second = await call(server), await call(server)
        assert (first.status, second.status, second.headers["Reason"]) == (200, 429, "CallerRateLimitExceeded")
        limits = server.gateway.edge.guards.limits
        entry = of_function(server.gateway.router.resolve("default", "hello"), Target("hello", "/", ""))
        limits.admit(entry, STRANGER, "198.51.100.1")
        with pytest.raises(Throttled):
            limits.admit(entry, STRANGER, "198.51.100.1")


KEYED: Any = {"public": False, "auth": {"key": {}}}


async def a_key(server: Control, plan: str) -> dict[str, str]:
    answered = await server.call("POST", "/v1/keys", {"name": f"of-{plan}", "plan": plan})
    assert answered.status == 201, answered.body
    return {"x-api-key": answered.json()["key"]}


async def test_a_key_calls_as_often_as_its_plan_allows_and_its_usage_is_shown(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(**KEYED)
        unknown = await server.call("POST", "/v1/keys", {"name": "early", "plan": "gold"})
        assert (unknown.status, unknown.json()["error"]["hint"]) == (404, "see faas plan ls")
        assert (await server.call("PUT", "/v1/plans/gold", {"quota": 2, "period": "day"})).status == 201
        key = await a_key(server, "gold")
        answers = [await call(server, **key) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[2].headers["Reason"] == "QuotaExceeded"
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 86_400
        for asked in ("", "?key=of-gold"):
            usage = (await server.call("GET", f"/v1/plans/gold/usage{asked}")).json()
            assert [(row["name"], row["used"], row["left"]) for row in usage["usage"]] == [("of-gold", 2, 0)]
        assert (await server.call("GET", "/v1/plans/gold/usage?key=none")).status == 404
        assert (await server.call("DELETE", "/v1/plans/gold")).status == 409
        assert (await server.call("DELETE", "/v1/keys/of-gold")).status == 204
        assert (await server.call("DELETE", "/v1/plans/gold")).status == 204


async def test_a_key_is_given_another_plan_from_its_next_request_on_and_gets_no_quota_anew(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(**KEYED)
        for plan in ("gold", "silver"):
            assert (await server.call("PUT", f"/v1/plans/{plan}", {"quota": 2, "period": "month"})).status == 201
        key = await a_key(server, "gold")

        async def statuses() -> list[int]:
            return [(await call(server, **key)).status for _ in range(3)]

        async def replan(body: Any, name: str = "of-gold") -> int:
            return (await server.call("PATCH", f"/v1/keys/{name}", body)).status

        assert await statuses() == [200, 200, 429]
        changed = await server.call("PATCH", "/v1/keys/of-gold", {"plan": "silver"})
        assert (changed.status, changed.json()["plan"], changed.json()["state"]) == (200, "silver", "active")
        assert await statuses() == [200, 200, 429]
        assert await replan({"plan": "gold"}) == 200
        assert await statuses() == [429] * 3, "it was used up before"
        assert (await server.call("DELETE", "/v1/plans/gold")).status == 409
        assert await replan({"plan": ""}) == 200
        assert await statuses() == [200] * 3
        assert (await server.call("DELETE", "/v1/plans/gold")).status == 204
        assert [await replan(body) for body in ({"plan": "gold"}, {}, {"plan": 1}, {"plan": "", "name": "x"})] == [
            404, 400, 400, 400,
        ]  # fmt: skip
        assert await replan({"plan": "silver"}, "nobody") == 404
        assert await replan({"plan": "silver"}) == 200
        records = (await server.call("GET", "/v1/audit?action=keys.patch")).json()
        assert "of-gold" in str(records)
        server.gateway.edge.keys._by_id.clear()
        await server.gateway.edge.keys.stop()
        await server.gateway.edge.keys.start()
        assert [one.plan for one in server.gateway.edge.keys.every()] == ["silver"], "it is stored"


async def test_a_request_that_finds_no_capacity_gives_its_unit_back_and_one_that_fails_does_not(tmp_path: Path) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def fail(revision: Revision, event: bytes) -> InvocationResult:
        began.set()
        await may_end.wait()
        raise FunctionError("boom")

    async with control(tmp_path, FakeWorker(fail)) as server:
        await server.deploy(queue_timeout=0, scale={"max": 1}, **KEYED)
        await server.call("PUT", "/v1/plans/gold", {"quota": 5})
        key = await a_key(server, "gold")
        first = asyncio.create_task(call(server, **key))
        await began.wait()
        refused = await call(server, **key)
        may_end.set()
        assert (refused.status, (await first).status) == (429, 502)
        assert refused.headers["Reason"] not in ("QuotaExceeded", "CallerRateLimitExceeded")
        plans = server.gateway.edge.guards.plans
        assert list(plans.used(plans.get("default", "gold"))[1].values()) == [1]


async def test_a_plan_that_is_not_for_a_function_does_not_open_it(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(**KEYED)
        await server.deploy("other", **KEYED)
        await server.call("PUT", "/v1/plans/some", {"quota": 5, "functions": ["hello"]})
        key = await a_key(server, "some")
        assert (await call(server, **key)).status == 200
        assert (await call(server, "other", **key)).status == 403


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "a rate, a quota, or both"),
        ({"burst": 3, "quota": 1}, "burst goes with a rate"),
        ({"rate": 0}, "a number from 0.001"),
        ({"rate": 1, "burst": 0}, "a whole number from 1"),
        ({"quota": 0}, "quota must be a whole number from 1"),
        ({"quota": 1, "period": "year"}, "one of day, week, month"),
        ({"quota": 1, "functions": ["No Name"]}, "functions must be a list"),
        ({"quota": 1, "rates": 2}, "unknown key"),
    ],
)
async def test_a_plan_that_says_nothing_clear_is_refused(tmp_path: Path, wish: dict[str, Any], words: str) -> None:
    async with control(tmp_path) as server:
        answered = await server.call("PUT", "/v1/plans/gold", wish or b"{}")
        assert answered.status == 400
        assert words in answered.json()["error"]["message"]


CIRCUIT: Any = {"circuit": {"errors": 0.5, "window": "30s", "least": 4, "open": "10s"}}


async def test_a_function_that_fails_is_left_alone_for_a_while_and_tried_by_one_call(tmp_path: Path) -> None:
    failing = True

    async def sometimes(revision: Revision, event: bytes) -> InvocationResult:
        if failing:
            raise FunctionError("boom")
        return InvocationResult(b'"well"')

    async with control(tmp_path, FakeWorker(sometimes)) as server:
        await server.deploy(**CIRCUIT)
        circuits, now = server.gateway.edge.guards.circuits, 1000.0
        circuits.clock = lambda: now
        assert [(await call(server)).status for _ in range(4)] == [502] * 4
        refused = await call(server)
        assert (refused.status, refused.headers["Reason"], refused.headers["Retry-After"]) == (503, "CircuitOpen", "10")
        assert len(server.worker.invocations) == 4
        metrics = server.gateway.metrics
        assert sample(metrics, "faas_circuit_state", function="hello") == 2
        assert sample(metrics, "faas_throttles_total", function="hello", reason="CircuitOpen") == 1
        assert (await server.call("GET", "/v1/functions/hello")).json()["circuit"] == "open"
        now += 10
        failing = False
        assert [(await call(server)).status for _ in range(3)] == [200] * 3
        assert sample(metrics, "faas_circuit_state", function="hello") == 0
        assert (await server.call("GET", "/v1/functions/hello")).json()["circuit"] == "closed"


async def test_a_new_revision_begins_with_a_closed_circuit(tmp_path: Path) -> None:
    async def fail(revision: Revision, event: bytes) -> InvocationResult:
        raise FunctionError("boom")

    async with control(tmp_path, FakeWorker(fail)) as server:
        await server.deploy(**CIRCUIT)
        assert [(await call(server)).status for _ in range(5)] == [502, 502, 502, 502, 503]
        await server.deploy(memory=256, **CIRCUIT)
        assert (await call(server)).status == 502
