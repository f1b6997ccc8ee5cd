"""Budgets: they warn, and refuse when they are told to, by what the ledger counts; a month, and through a restart."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from faas.errors import Throttled
from faas.leases import Report
from faas.metrics import Metrics
from faas.protocol import (
    RevisionKey,
)
from faas.state.session import Database
from gateway.ledger import MEGABYTE, Ledger
from gateway.month import Month, Spent
from gateway.prices import MB_MS, Prices
from gateway.spending import MOST_BUDGETS, Spending, State, judge, limit_of
from gateway.store.budgets import Budget, Unit
from tests.support.cli import CommandLine
from tests.support.control import Control, control, until
from tests.support.fake_api import FakeApi, Reply

LAST_HOUR = datetime(2030, 3, 31, 23, 0, tzinfo=UTC).timestamp()
HELLO, OTHER = RevisionKey("default", "hello", 1), RevisionKey("default", "other", 1)
ONE = Report(0.01, 0.01, 128 * MEGABYTE, 0)
PUT = "/v1/budgets/most"


def budget(unit: Unit, amount: str, *, function: str = "", throttle: bool = True, warn: int = 80) -> Budget:
    return Budget("default", "most", function, unit, Decimal(amount), warn, throttle)


@pytest.mark.parametrize(
    ("unit", "amount", "below", "reached"),
    [
        (Unit.REQUESTS, "10", Spent(9, 10**15), Spent(10, 0)),
        (Unit.GB_SECONDS, "0.5", Spent(10**9, MB_MS // 2 - 1), Spent(0, MB_MS // 2)),
        (Unit.COST, "0.20", Spent(999_999, 0), Spent(1_000_000, 0)),
        (Unit.COST, "0.0000166667", Spent(0, MB_MS - 1), Spent(0, MB_MS)),
        (Unit.COST, "0.0000168667", Spent(1, MB_MS - 1), Spent(1, MB_MS)),
    ],
)
def test_a_budget_is_reached_to_the_last_unit(unit: Unit, amount: str, below: Spent, reached: Spent) -> None:
    limit = limit_of(budget(unit, amount), Prices())
    assert judge(limit, 100, below) is State.OK
    assert judge(limit, 100, reached) is State.EXCEEDED
    assert limit.ratio(reached) == 1


def test_a_budget_warns_from_its_percentage_on() -> None:
    limit = limit_of(budget(Unit.REQUESTS, "200"), Prices())
    assert [judge(limit, 80, Spent(n)) for n in (159, 160, 199, 200)] == [
        State.OK, State.WARNING, State.WARNING, State.EXCEEDED,
    ]  # fmt: skip


class Clock:
    now = LAST_HOUR

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield database
    await database.close()


def parts(database: Database, clock: Clock) -> tuple[Ledger, Spending]:
    ledger = Ledger(database, clock=clock)
    return ledger, Spending(database, ledger.month, Prices(), Metrics("test"), clock=clock)


async def test_a_functions_budget_refuses_that_function_until_the_month_ends(database: Database) -> None:
    clock = Clock()
    ledger, spending = parts(database, clock)
    await ledger.start()
    await spending.put(budget(Unit.REQUESTS, "2", function="hello"))
    for _ in range(2):
        spending.admit(HELLO)
        ledger.add(HELLO, [ONE])
    with pytest.raises(Throttled) as refused:
        spending.admit(HELLO)
    assert (refused.value.reason, refused.value.retry_after) == ("budget", 3600)
    assert "most" not in refused.value.message
    spending.admit(OTHER)
    clock.now = Month.at(LAST_HOUR).start + 5
    for _ in range(2):
        ledger.add(HELLO, [ONE])
    with pytest.raises(Throttled) as refused:  # a month ahead: ask again tomorrow, it may have been raised
        spending.admit(HELLO)
    assert refused.value.retry_after == 86_400
    clock.now = Month.at(LAST_HOUR).end
    spending.admit(HELLO)
    await ledger.stop()


async def test_a_namespaces_budget_counts_all_its_functions_and_what_was_before_the_restart(
    database: Database,
) -> None:
    clock = Clock()
    ledger, spending = parts(database, clock)
    await ledger.start()
    await spending.put(budget(Unit.GB_SECONDS, "0.0025"))
    ledger.add(HELLO, [ONE])
    await ledger.stop()
    ledger, spending = parts(database, clock)
    await ledger.start()
    await spending.start()
    spending.admit(OTHER)
    ledger.add(OTHER, [ONE])
    for key in (HELLO, OTHER):
        with pytest.raises(Throttled):
            spending.admit(key)
    spending.admit(RevisionKey("team", "hello", 1))
    await spending.put(budget(Unit.GB_SECONDS, "0.0026"))  # raised: they are taken again at once
    spending.admit(HELLO)
    await spending.put(budget(Unit.GB_SECONDS, "0.0001", throttle=False))
    spending.admit(HELLO)
    await spending.stop()
    await ledger.stop()


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "faas.budgets"]


async def test_a_warning_is_logged_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    ledger, spending = parts(database, clock)
    await spending.put(budget(Unit.REQUESTS, "10"))
    with caplog.at_level(logging.WARNING, "faas.budgets"):
        for _ in range(12):
            ledger.add(HELLO, [ONE])
            spending.look()
        assert messages_of(caplog) == [
            "budget most: 80 % of this month's 10 requests are used",
            "budget most: 100 % of this month's 10 requests are used; calls are refused until the month ends",
        ]
        clock.now = Month.at(LAST_HOUR).end  # the next month may warn again
        spending.look()
        for _ in range(8):
            ledger.add(HELLO, [ONE])
        spending.look()
    assert len(messages_of(caplog)) == 3


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        await running.deploy("hello")
        yield running


async def test_a_throttled_call_gets_429_with_the_reason_and_is_no_invocation(server: Control) -> None:
    made = await server.call("PUT", PUT, {"requests": 2, "function": "hello", "throttle": True})
    assert (made.status, made.json()["state"], made.json()["used_percent"]) == (201, "ok", 0)
    statuses = [(await server.call("GET", "/function/hello", public=True)).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    refused = await server.call("GET", "/function/hello", public=True)
    assert refused.headers["Reason"] == "budget"
    assert 0 < int(refused.headers["Retry-After"]) <= 86_400
    assert (await server.call("POST", "/v1/functions/hello/invocations", b"{}")).status == 429
    found = (await server.call("GET", "/v1/usage")).json()
    assert found["total"]["requests"] == 2
    assert [(b["name"], b["state"], b["used_percent"]) for b in found["budgets"]] == [("most", "exceeded", 100)]
    page = server.gateway.metrics.render().decode()
    assert 'faas_throttles_total{function="hello",reason="budget"} 4.0' in page
    assert 'faas_budget_used_ratio{budget="most"} 1.0' in page
    assert (await server.call("PUT", PUT, {"requests": 3, "function": "hello", "throttle": True})).status == 200
    assert (await server.call("GET", "/function/hello", public=True)).status == 200
    assert (await server.call("DELETE", PUT)).status == 204
    assert (await server.call("DELETE", PUT)).status == 404
    assert (await server.call("GET", "/function/hello", public=True)).status == 200
    assert "faas_budget_used_ratio{" not in server.gateway.metrics.render().decode()


async def test_an_event_waits_while_the_budget_is_used_up(server: Control) -> None:
    await server.call("PUT", PUT, {"requests": 1, "throttle": True})
    assert (await server.call("GET", "/function/hello", public=True)).status == 200
    accepted = await server.call("POST", "/async-function/hello", b"{}", public=True)
    assert accepted.status == 202
    path = f"/v1/invocations/{accepted.headers['X-Call-Id']}"

    async def deferred() -> bool:
        found = (await server.call("GET", path)).json()
        assert found["status"] in ("pending", "running"), found
        return bool(found.get("error_type") == "budget")

    await until(deferred)
    await server.call("DELETE", PUT)

    async def succeeded() -> bool:
        return bool((await server.call("GET", path)).json()["status"] == "success")

    await until(succeeded)


async def test_budgets_survive_a_restart_with_what_is_used_of_them(tmp_path: Path) -> None:
    wish = {"cost": 0.0000002, "throttle": True, "warn": 50}
    async with control(tmp_path) as server:
        await server.deploy("hello")
        too_little = await server.call("PUT", PUT, wish)
        assert too_little.status == 400
        wish = {"requests": 1, "throttle": True, "warn": 50}
        assert (await server.call("PUT", PUT, wish)).status == 201
        assert (await server.call("GET", "/function/hello", public=True)).status == 200
    async with control(tmp_path) as server:
        (found,) = (await server.call("GET", "/v1/budgets")).json()["budgets"]
        assert {k: found[k] for k in wish} == wish
        assert (found["state"], found["function"]) == ("exceeded", None)
        assert (await server.call("GET", "/function/hello", public=True)).status == 429


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "one limit"),
        ({"requests": 1, "cost": 1}, "one limit"),
        ({"requests": 0}, "from 0.000001"),
        ({"requests": 1.5}, "whole number"),
        ({"cost": "5"}, "cost must be a number"),
        ({"cost": True}, "cost must be a number"),
        ({"gb_seconds": 1e13}, "to 1000000000000"),
        ({"cost": 1, "warn": 0}, "warn"),
        ({"cost": 1, "warn": 101}, "warn"),
        ({"cost": 1, "throttle": "yes"}, "throttle"),
        ({"cost": 1, "function": "UPPER"}, "function"),
        ({"cost": 1, "limit": 3}, "unknown key"),
    ],
)
async def test_a_budget_that_makes_no_sense_is_refused(server: Control, wish: dict[str, Any], said: str) -> None:
    answered = await server.call("PUT", PUT, wish)
    assert answered.status == 400, answered.body
    assert said in answered.json()["error"]["message"]


async def test_what_is_no_number_and_what_is_no_function_is_refused(server: Control) -> None:
    for raw in (b'{"cost": NaN}', b'{"cost": 1e400}', b'{"cost": -1}'):
        assert (await server.call("PUT", PUT, raw)).status == 400, raw
    missing = await server.call("PUT", PUT, {"cost": 1, "function": "helo"})
    assert (missing.status, "hello" in missing.json()["error"]["hint"]) == (404, True)
    assert (await server.call("PUT", "/v1/budgets/UPPER", {"cost": 1})).status == 400


async def test_budgets_are_set_by_the_namespaces_administrator_alone(server: Control) -> None:
    await server.call("PUT", "/v1/budgets/most", {"cost": 1})
    await server.call("PUT", "/v1/budgets/most.team", {"cost": 1})
    viewer, admin = await server.a_token("viewer", "team"), await server.a_token("admin", "team")
    deployer = await server.a_token("deployer", "team")
    listed = (await server.call("GET", "/v1/budgets", token=viewer)).json()["budgets"]
    assert [one["namespace"] for one in listed] == ["team"]
    for token, verb, path, status in (
        (viewer, "GET", "/v1/budgets/most.team", 200),
        (viewer, "GET", "/v1/budgets/most", 403),
        (viewer, "GET", "/v1/budgets?namespace=default", 403),
        (deployer, "PUT", "/v1/budgets/most.team", 403),
        (admin, "PUT", "/v1/budgets/most", 403),
        (admin, "DELETE", "/v1/budgets/most", 403),
        (admin, "PUT", "/v1/budgets/more.team", 201),
        (admin, "DELETE", "/v1/budgets/most.team", 204),
    ):
        answered = await server.call(verb, path, {"cost": 2} if verb == "PUT" else None, token=token)
        assert answered.status == status, (verb, path, answered.body)


async def test_a_namespace_has_so_many_budgets_and_no_more(database: Database) -> None:
    _, spending = parts(database, Clock())
    for number in range(MOST_BUDGETS):
        spending._watch(Budget("default", f"b{number}", "", Unit.COST, Decimal(1), 80, False))
    with pytest.raises(Exception, match=str(MOST_BUDGETS)):
        await spending.put(budget(Unit.COST, "1"))
    await spending.put(Budget("default", "b0", "", Unit.COST, Decimal(2), 80, False))  # replaced


# The command

SHOWN = {"name": "most", "namespace": "default", "function": "hello", "cost": 5.0, "currency": "USD", "warn": 80,
         "throttle": False, "used": 4.5, "used_percent": 90.0, "state": "warning",
         "resets_at": "2030-04-01T00:00:00Z"}  # fmt: skip


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_budgets_are_listed_set_and_removed(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/budgets"] = Reply({"budgets": [SHOWN]})
    row = faas("budget", "ls").out.splitlines()[1]
    assert row.split()[:7] == ["most", "hello", "5.00", "USD", "90", "%", "warning"]
    assert faas("budget", "ls", "-o", "name").out == "most\n"
    faas.api.replies["PUT", "/v1/budgets/most"] = Reply(SHOWN, 201)
    done = faas("budget", "set", "most", "--cost", "5", "--function", "hello", "--throttle")
    assert faas.api.last("PUT").json() == {"cost": 5.0, "function": "hello", "warn": 80, "throttle": True}
    assert (done.out, done.err) == ("most\n", "budget most: 90 % of 5.00 USD used: warning\n")
    faas.api.replies["DELETE", "/v1/budgets/most.team"] = Reply(status=204)
    assert faas("budget", "rm", "most.team").out == "most.team\n"


@pytest.mark.parametrize("options", [[], ["--cost", "1", "--requests", "1"]])
def test_a_budget_is_set_with_one_limit(faas: CommandLine, options: list[str]) -> None:
    assert "one limit" in faas("budget", "set", "most", *options, code=2).err
    assert json.dumps([seen.path for seen in faas.api.seen]) == "[]"
