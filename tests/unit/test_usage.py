"""The ledger: every ended invocation counted once, in the units of its REPORT line, through restarts and full disks."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from faas.errors import FunctionError, InvalidInput, Unavailable
from faas.leases import InvocationResult, Report
from faas.protocol import (
    Revision,
    RevisionKey,
)
from faas.state.session import Database
from faas.state.tables import usage as table
from gateway import prices
from gateway.ledger import HOURS_KEPT_DAYS, KEPT_MONTHS, MEGABYTE, Ledger
from gateway.month import Month
from gateway.prices import MB_MS, Prices
from gateway.store import usage
from gateway.store.usage import DAY, HOUR, By, Figures, UsageQuery, UsageRow
from tests.support.cli import CommandLine
from tests.support.control import Control, control, until
from tests.support.fake_api import FakeApi, Reply
from tests.support.fake_worker import FakeWorker

NOON = datetime(2030, 3, 15, 12, 30, tzinfo=UTC).timestamp()
HELLO = RevisionKey("default", "hello", 1)


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def report(billed_ms: int = 100, memory: int = 128, *, failed: bool = False, cold: bool = False) -> Report:
    init = 0.05 if cold else None
    return Report(billed_ms / 1000 - 0.0004, billed_ms / 1000, memory * MEGABYTE, 40 * MEGABYTE, init, failed)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield database
    await database.close()


async def rows(database: Database, start: int = 0, end: int = 2**40, by: By = By.FUNCTION) -> list[UsageRow]:
    return await database.ask(partial(usage.find, query=UsageQuery(start, end, by=by)))


async def hours(database: Database) -> dict[int, int]:
    """Hour → requests, as the table has them."""
    asked = select(table.c.hour, table.c.requests).order_by(table.c.hour)
    return {row.hour: row.requests for row in await database.ask(lambda tx: tx.execute(asked).all())}


async def test_figures_are_added_up_by_function_in_whole_units(database: Database) -> None:
    ledger = Ledger(database, clock=Clock())
    await ledger.start()
    for _ in range(3):
        ledger.add(HELLO, [report(101, 128)])
    ledger.add(RevisionKey("default", "hello", 2), [report(7, 1769, failed=True, cold=True)])  # another size since
    ledger.add(RevisionKey("team", "hello", 1), [report(1, 10_240)])
    await ledger.write()
    mine, theirs = await rows(database)
    assert (mine.namespace, mine.function, theirs.namespace) == ("default", "hello", "team")
    assert mine.figures == Figures(4, 1, 1, 3 * 100_600 + 6_600, 310, 3 * 101 * 128 + 7 * 1769, 40 * MEGABYTE)
    assert theirs.figures.mb_ms == 10_240
    await ledger.stop()


async def test_the_loop_writes_within_seconds_and_a_stop_writes_the_rest(database: Database) -> None:
    ledger = Ledger(database)
    await ledger.start()
    ledger.add(HELLO, [report()])
    await until(lambda: rows(database), 20)
    ledger.add(HELLO, [report()])
    await ledger.stop()
    ledger.add(HELLO, [report()])  # what the worker's end has ended
    await ledger.stop()
    (row,) = await rows(database)
    assert row.figures.requests == 3


async def test_an_invocation_counts_in_the_hour_in_which_it_ended_whichever_way_the_clock_goes(
    database: Database,
) -> None:
    clock = Clock()
    ledger = Ledger(database, clock=clock)
    for step in (0, HOUR, -HOUR, 40 * DAY, -40 * DAY):
        clock.now += step
        ledger.add(HELLO, [report()])
    await ledger.write()
    this = int(NOON) // HOUR * HOUR
    assert await hours(database) == {this: 3, this + HOUR: 1, this + 40 * DAY: 1}


async def test_what_could_not_be_written_is_kept_and_written_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(database, clock=Clock())
    ledger.add(HELLO, [report()])

    async def full(work: object) -> None:
        ledger.add(HELLO, [report()])  # ends meanwhile
        raise Unavailable("the disk is full")

    with monkeypatch.context() as broken:
        await ledger.write()
        broken.setattr(database, "change", full)
        for _ in range(3):
            ledger.add(HELLO, [report()])
            with pytest.raises(Unavailable):
                await ledger.write()
    await ledger.write()
    await ledger.write()
    (row,) = await rows(database)
    assert row.figures.requests == 7


async def test_a_caller_who_goes_away_makes_nothing_count_twice(database: Database) -> None:
    ledger = Ledger(database, clock=Clock())
    for delay in (0, 0.0005, 0.001, 0.002, 0.004):
        ledger.add(HELLO, [report()])
        asking = asyncio.create_task(ledger.write())
        await asyncio.sleep(delay)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await ledger.write()
    (row,) = await rows(database)
    assert row.figures.requests == 5


async def test_hours_become_days_after_45_days_and_go_after_25_months(database: Database) -> None:
    clock = Clock()
    ledger = Ledger(database, clock=clock)
    midnight = int(NOON) // DAY * DAY
    kept = midnight - HOURS_KEPT_DAYS * DAY
    for moment in (kept - DAY, kept - DAY + HOUR, kept - 1, kept, kept + HOUR, NOON - 650 * DAY, NOON - 900 * DAY):
        clock.now = moment
        ledger.add(HELLO, [report(100, failed=True)])
    clock.now = NOON
    await ledger.write()
    before = await rows(database, kept - DAY, kept)
    for _ in range(2):  # the second finds nothing to do
        await ledger.tidy()
        found = await hours(database)
        oldest = int(NOON - 650 * DAY) // DAY * DAY
        assert found == {oldest: 1, kept - DAY: 3, kept: 1, kept + HOUR: 1}
    assert await rows(database, kept - DAY, kept) == before
    assert Month.at(NOON).before(KEPT_MONTHS) == Month(2028, 2)


async def test_the_months_totals_survive_a_restart_and_begin_anew_with_the_month(database: Database) -> None:
    clock = Clock()
    first = Ledger(database, clock=clock)
    await first.start()
    first.add(HELLO, [report(10, 100)])
    await first.stop()
    second = Ledger(database, clock=clock)
    await second.start()
    second.add(HELLO, [report(5, 100)])
    for spent in (second.month.look("default", "hello"), second.month.look("default")):
        assert (spent.requests, spent.mb_ms) == (2, 1500)
    clock.now = Month.at(NOON).end
    second.add(HELLO, [report(1, 100)])
    await second.write()
    spent = second.month.look("default")
    assert (spent.requests, spent.mb_ms) == (1, 100)
    clock.now = NOON  # set back: that month's totals are read again
    second.add(HELLO, [report(1, 100)])
    await second.write()
    assert second.month.look("default").requests == 3
    await second.stop()


def test_months_are_calendar_months_in_utc() -> None:
    december = Month.parse("2029-12")
    assert datetime.fromtimestamp(december.start, UTC).isoformat() == "2029-12-01T00:00:00+00:00"
    assert december.end == Month(2030, 1).start
    assert Month.at(december.end - 1) == december
    assert str(Month.at(december.end)) == "2030-01"
    for wrong in ("2029-13", "2029-1", "29-12", "2029-12-01", ""):
        with pytest.raises(InvalidInput):
            Month.parse(wrong)


def test_a_bill_counts_what_is_beyond_the_allowance() -> None:
    listed = Prices()
    below = listed.bill(1_000_000, 400_000 * MB_MS)
    assert (below.cost, below.requests.free, below.gb_seconds.free) == (0, 1_000_000, 400_000)
    # Lambda's own example: 3 million requests of 120 ms at 1,536 MB are 540,000 GB-seconds.
    above = listed.bill(3_000_000, 3_000_000 * 120 * 1536)
    assert above.requests.cost == Decimal("0.40")
    assert above.gb_seconds.used == 540_000
    assert round(above.gb_seconds.cost, 2) == Decimal("2.33")
    assert listed.cost(1, MB_MS) == Decimal("0.0000002") + Decimal("0.0000166667")


def test_the_price_list_is_the_administrators_and_exact(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    assert prices.load(file) == Prices()
    file.write_text('currency = "EUR"\nper_gb_second = 0.0000133334\nfree_requests = 0\n')
    found = prices.load(file)
    assert found == Prices("EUR", per_gb_second=Decimal("0.0000133334"), free_requests=0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("per_request = 1", "unknown key per_request"),
        ('currency = "euro"', "three capital letters"),
        ("per_gb_second = -1", "from 0"),
        ("per_gb_second = nan", "from 0"),
        ("free_requests = 1.5", "a whole number"),
        ("per_million_requests = true", "a number"),
        ("per_million_requests", "prices.toml"),
    ],
)
def test_a_wrong_price_list_is_refused_with_file_and_key(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(line)
    with pytest.raises(InvalidInput, match=said) as refused:
        prices.load(file)
    assert str(file) in refused.value.message


async def failing(revision: Revision, event: bytes) -> InvocationResult:
    await asyncio.sleep(0.003)
    if event == b'"bad"':
        raise FunctionError("no")
    return InvocationResult(event)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path, FakeWorker(failing)) as running:
        await running.deploy("hello", memory=256)
        yield running


async def invoke(server: Control, name: str = "hello", event: object = "good") -> int:
    return (await server.call("POST", f"/v1/functions/{name}/invocations", json.dumps(event).encode())).status


async def test_the_api_tells_what_ran_up_to_now_with_the_months_bill(server: Control) -> None:
    for event in ("good", "bad", "good"):
        await invoke(server, event=event)
    found = (await server.call("GET", "/v1/usage")).json()
    (row,) = found["usage"]
    assert (row["namespace"], row["function"], row["requests"], row["errors"]) == ("default", "hello", 3, 1)
    assert row["mb_ms"] == row["billed_ms"] * 256 > 0
    assert row["gb_seconds"] == row["mb_ms"] / MB_MS
    assert Decimal(row["cost"]) == Prices().cost(3, row["mb_ms"])
    assert found["bill"]["requests"] == {"used": 3.0, "free": 3.0, "allowance": 1_000_000, "cost": "0"}
    assert found["bill"]["cost"] == "0"
    assert found["month"] == str(Month.at(time.time()))
    assert found["total"] == {k: v for k, v in row.items() if k not in ("namespace", "function")}


async def test_usage_by_namespace_and_day_and_since_a_time(server: Control) -> None:
    await server.deploy("other", namespace="team")
    for name in ("hello", "other.team", "other.team"):
        await invoke(server, name)
    by_namespace = (await server.call("GET", "/v1/usage?by=namespace")).json()["usage"]
    assert [(row["namespace"], row["requests"]) for row in by_namespace] == [("default", 1), ("team", 2)]
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    by_day = (await server.call("GET", f"/v1/usage?by=day&since={time.time() - 60}")).json()
    assert [(row["day"], row["requests"]) for row in by_day["usage"]] == [(day, 3)]
    assert by_day["bill"] is None
    one = (await server.call("GET", "/v1/usage?function=other.team")).json()
    assert (one["total"]["requests"], one["bill"]) == (2, None)  # the allowance is the whole server's
    assert (await server.call("GET", "/v1/usage?month=2020-01")).json()["usage"] == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("month=2020-13", 400), ("month=2999-01", 400), ("since=soon", 400), ("since=nan", 400), ("since=1e15", 400),
        ("since=-1", 400), ("since=1_000", 400), ("since=%201", 400), ("since=1e3", 400), ("since=%D9%A3", 400),
        ("by=hour", 400), ("since=1&month=2020-01", 400), ("function=UPPER", 400),
        ("namespace=a.b", 400), ("function=helo", 404),
    ],
)  # fmt: skip
async def test_a_question_that_makes_no_sense_is_refused(server: Control, query: str, status: int) -> None:
    answered = await server.call("GET", f"/v1/usage?{query}")
    assert answered.status == status, answered.body
    if status == 404:
        assert "did you mean hello" in answered.json()["error"]["hint"]


async def test_a_viewer_sees_the_usage_of_its_own_namespace(server: Control) -> None:
    await server.deploy("other", namespace="team")
    await invoke(server)
    await invoke(server, "other.team")
    viewer = await server.a_token("viewer", "team")
    found = (await server.call("GET", "/v1/usage", token=viewer)).json()
    assert [row["function"] for row in found["usage"]] == ["other"]
    assert found["bill"] is None
    for query in ("namespace=default", "function=hello"):
        assert (await server.call("GET", f"/v1/usage?{query}", token=viewer)).status == 403


async def test_a_deleted_function_stays_on_the_bill_and_all_of_it_survives_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        await invoke(server)
        assert (await server.call("DELETE", "/v1/functions/hello")).status == 204
        before = (await server.call("GET", "/v1/usage")).json()["usage"]
    async with control(tmp_path) as server:
        assert (await server.call("GET", "/v1/usage")).json()["usage"] == before
        assert [row["requests"] for row in before] == [1]
        assert (await server.call("GET", "/v1/usage?function=hello")).json()["total"]["requests"] == 1


# The command

ROW = {"requests": 1_200_000, "errors": 2, "cold_starts": 1, "duration_ms": 9.5, "billed_ms": 12_000,
       "mb_ms": 1_536_000, "gb_seconds": 1.5, "max_memory_mb": 40, "cost": "0.24002500005"}  # fmt: skip
LINE = {"used": 1_200_000.0, "free": 1_000_000.0, "allowance": 1_000_000, "cost": "0.04"}
FOUND = {
    "month": "2030-03", "from": "2030-03-01T00:00:00Z", "to": "2030-03-15T00:00:00Z", "by": "function",
    "currency": "USD", "usage": [{"namespace": "team", "function": "hello", **ROW}], "total": ROW,
    "bill": {"currency": "USD", "requests": LINE, "cost": "0.04",
             "gb_seconds": {"used": 1.5, "free": 1.5, "allowance": 400_000, "cost": "0"}},
    "budgets": [{"name": "most", "namespace": "team", "function": None, "requests": 1_000_000.0, "currency": None,
                 "warn": 80, "throttle": True, "used": 1_200_000.0, "used_percent": 120.0, "state": "exceeded",
                 "resets_at": "2030-04-01T00:00:00Z"}],
}  # fmt: skip


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        api.replies["GET", "/v1/usage"] = Reply(FOUND)
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_the_command_shows_a_total_and_the_bill_last(faas: CommandLine) -> None:
    done = faas("usage", "hello.team", "--month", "2030-03")
    assert faas.api.last("GET").query == {"function": "hello.team", "month": "2030-03", "by": "function"}
    head, row, total, bill = done.out.splitlines()
    assert head.split()[:2] == ["FUNCTION", "REQUESTS"]
    assert row.split() == ["hello.team", "1,200,000", "2", "1", "12.000", "s", "1.500", "40", "MB", "0.240025"]
    assert total.startswith("total ")
    assert bill == (
        "2030-03: 0.04 USD (1,000,000 of 1,000,000 free requests and 1.500 of 400,000 free GB-seconds used)"
    )
    assert "budget most.team: 120 % of 1,000,000 requests used; calls are refused until 2030-04-01" in done.err
    faas.api.replies["GET", "/v1/usage"] = Reply(FOUND | {"bill": None})
    assert faas("usage", "--since", "2h").last_line == "0.240025 USD by the price list, no allowance taken off"
    assert float(faas.api.last("GET").query["since"]) == pytest.approx(time.time() - 7200, abs=60)


def test_usage_as_csv_json_and_names(faas: CommandLine) -> None:
    (written,) = csv.DictReader(io.StringIO(faas("usage", "-o", "csv").out))
    expected = {"namespace": "team", "function": "hello", "cost_usd": ROW["cost"]}
    assert written == {k: str(v) for k, v in {**ROW, **expected}.items() if k != "cost"}
    assert json.loads(faas("usage", "-o", "json").out) == FOUND
    assert faas("usage", "-o", "name").out == "hello.team\n"
    faas.api.replies["GET", "/v1/usage"] = Reply(FOUND | {"usage": [{"day": "2030-03-01", **ROW}]})
    assert faas("usage", "--by", "day", "-o", "csv").out.splitlines()[1].startswith("2030-03-01,1200000,2,")
    assert faas("usage", "--month", "2030-03", "--since", "1h", code=2).out == ""
