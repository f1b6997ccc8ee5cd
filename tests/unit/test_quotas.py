"""Quotas: calendar periods, exact counts, and a database that ends up with every unit, whatever fails between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import Forbidden, Throttled, Unavailable
from faas.metrics import Metrics
from faas.state.session import Database
from gateway.plan_book import PlanBook
from gateway.quotas import Period, Quotas, Where, span_at
from gateway.store.plans import Plan
from tests.support.data_path import sample

DAILY = Plan("default", "gold", quota=3, period=Period.DAY)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "now", "start", "end"),
    [
        (Period.DAY, "2030-03-31T23:59:59.999", "2030-03-31", "2030-04-01"),
        (Period.DAY, "2030-04-01T00:00:00", "2030-04-01", "2030-04-02"),
        (Period.WEEK, "2030-01-06T12:00:00", "2029-12-31", "2030-01-07"),  # a Sunday
        (Period.WEEK, "2030-01-07T00:00:00", "2030-01-07", "2030-01-14"),  # a Monday
        (Period.MONTH, "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        (Period.MONTH, "2030-12-31T23:59:59", "2030-12-01", "2031-01-01"),
    ],
)
def test_periods_are_those_of_the_calendar_in_utc(period: Period, now: str, start: str, end: str) -> None:
    found = span_at(period, at(now))
    assert (found.start, found.end) == (at(start), at(end))


@given(st.sampled_from(Period), st.floats(0, 4e9))
def test_every_moment_is_in_its_period_and_the_next_one_follows_it(period: Period, now: float) -> None:
    found = span_at(period, now)
    assert found.has(now)
    assert span_at(period, found.end).start == found.end
    assert span_at(period, found.start) == found


@given(st.lists(st.sampled_from(["take", "give", "write", "fail"]), max_size=60))
def test_what_is_written_adds_up_to_what_was_used(steps: list[str]) -> None:
    quotas, where, stored = Quotas(), Where("default", "gold", "k", Period.DAY, 0), 0
    for step in steps:
        if step in ("take", "give"):
            quotas.of(where).add(1 if step == "take" else -1)
            continue
        drained = quotas.drain()
        if step == "write":
            stored += sum(units for _, units in drained)
        else:
            quotas.keep(drained)
    assert stored + sum(units for _, units in quotas.drain()) == quotas.used(where)


def test_counts_are_kept_until_they_are_written_and_the_period_after_theirs_is_over() -> None:
    quotas, now = Quotas(), at("2030-01-05T12:00:00")
    old, before, current = (Where("n", "p", "k", Period.DAY, int(at(f"2030-01-0{day}"))) for day in (3, 4, 5))
    for where in (old, before, current):
        quotas.of(where).add(1)
    quotas.tidy(now)
    assert quotas.used(old) == 1
    quotas.drain()
    quotas.tidy(now)
    assert [quotas.used(where) for where in (old, before, current)] == [0, 1, 1]


class Clock:
    now = at("2030-03-31T23:00:00")
    ticks = 1000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.ticks


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield database
    await database.close()


async def book(database: Database, clock: Clock, *wanted: Plan, metrics: Metrics | None = None) -> PlanBook:
    made = PlanBook(database, metrics or Metrics("test"), clock=clock.time, monotonic=clock.monotonic)
    await made.start()
    for plan in wanted:
        await made.put(plan)
    return made


def take(plans: PlanBook, name: str = "gold", key: str = "k1") -> str:
    """The reason of the refusal, with its Retry-After; "" where it came in."""
    try:
        plans.admit("default", name, key, function="hello", api="")
    except Throttled as error:
        return f"{error.reason} {error.retry_after}"
    return ""


async def test_each_key_has_the_quota_for_itself_and_no_more_until_the_period_ends(database: Database) -> None:
    clock, metrics = Clock(), Metrics("test")
    plans = await book(database, clock, DAILY, metrics=metrics)
    assert [take(plans) for _ in range(4)] == ["", "", "", "QuotaExceeded 3600"]
    assert take(plans, key="k2") == ""
    clock.now += 3599.5
    assert take(plans) == "QuotaExceeded 1"
    clock.now += 0.5
    assert [take(plans) for _ in range(4)] == ["", "", "", "QuotaExceeded 86400"]
    outcome = {
        o: sample(metrics, "faas_plan_requests_total", plan="gold", outcome=o) for o in ("admitted", "over_quota")
    }
    assert outcome == {"admitted": 7, "over_quota": 3}
    await plans.stop()


async def test_a_unit_that_is_given_back_can_be_used_again(database: Database) -> None:
    plans = await book(database, Clock(), DAILY)
    counts = [plans.admit("default", "gold", "k1", function="hello", api="") for _ in range(3)]
    assert take(plans).startswith("QuotaExceeded")
    counts[0].add(-1)
    assert [take(plans)[:5] for _ in range(2)] == ["", "Quota"]
    await plans.stop()


async def test_a_rate_refuses_before_the_quota_is_touched(database: Database) -> None:
    clock = Clock()
    plans = await book(database, clock, Plan("default", "slow", 0.5, 2, 10))
    assert [take(plans, "slow") for _ in range(3)] == ["", "", "CallerRateLimitExceeded 2"]
    assert plans.used(plans.get("default", "slow"))[1] == {"k1": 2}
    clock.ticks += 2
    assert take(plans, "slow") == ""
    await plans.stop()


async def test_a_plan_opens_what_it_covers_and_nothing_else(database: Database) -> None:
    plans = await book(database, Clock(), Plan("default", "some", quota=9, functions=("hello",), apis=("shop",)), DAILY)
    plans.admit("default", "some", "k", function="hello", api="")
    plans.admit("default", "some", "k", function="other", api="shop")
    plans.admit("default", "gold", "k", function="other", api="any")
    for name, function, api in (("some", "other", ""), ("some", "hello", "stock"), ("gone", "hello", "")):
        with pytest.raises(Forbidden):
            plans.admit("default", name, "k", function=function, api=api)
    assert plans.used(plans.get("default", "some"))[1] == {"k": 2}
    await plans.stop()


async def test_counts_and_plans_are_there_again_after_a_stop(database: Database) -> None:
    clock = Clock()
    plans = await book(database, clock, DAILY)
    assert [take(plans) for _ in range(2)] == ["", ""]
    await plans.stop()
    again = await book(database, clock)
    assert again.every() == [DAILY]
    assert [take(again) for _ in range(2)] == ["", "QuotaExceeded 3600"]
    await again.stop()


async def test_what_was_written_is_there_after_an_end_without_a_stop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.writing.WRITE_SECONDS", 3600.0)
    clock = Clock()
    plans = await book(database, clock, DAILY)
    take(plans)
    await plans.write()
    take(plans)  # within the second that an abrupt end takes
    again = await book(database, clock)
    assert again.used(DAILY)[1] == {"k1": 1}
    for one in (plans, again):
        await one.stop()


async def test_what_cannot_be_written_is_kept_and_written_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    plans = await book(database, clock, DAILY)
    take(plans)
    with monkeypatch.context() as broken:
        broken.setattr(database, "change", _refuse)
        with pytest.raises(Unavailable):
            await plans.write()
        take(plans)
    await plans.write()
    again = await book(database, clock)
    assert again.used(DAILY)[1] == {"k1": 2}
    for one in (plans, again):
        await one.stop()


async def _refuse(work: object) -> None:
    raise Unavailable("full")


async def test_a_new_quota_holds_for_what_was_used_already_and_a_deleted_plan_takes_it_along(
    database: Database,
) -> None:
    plans = await book(database, Clock(), DAILY)
    assert [take(plans) for _ in range(3)] == ["", "", ""]
    assert await plans.put(Plan("default", "gold", quota=4, period=Period.DAY)) is False
    assert [take(plans)[:5] for _ in range(2)] == ["", "Quota"]
    await plans.remove("default", "gold")
    await plans.put(DAILY)
    assert take(plans) == ""
    await plans.stop()


async def test_many_at_once_take_exactly_the_quota(database: Database) -> None:
    plans = await book(database, Clock(), Plan("default", "gold", quota=500))

    async def some() -> int:
        came = 0
        for _ in range(40):
            came += take(plans) == ""
            await asyncio.sleep(0)
        return came

    async def writing() -> None:
        for _ in range(20):
            await plans.write()

    *came, _ = await asyncio.gather(*(some() for _ in range(30)), writing())
    assert sum(count for count in came if count is not None) == 500
    await plans.stop()
