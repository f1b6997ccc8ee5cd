"""Schedules: what fires when, once per fire time, whatever the clock and the server do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from faas.metrics import Metrics
from faas.protocol import Trigger
from faas.spec import Missed, Overlap, ScheduleSpec
from faas.state.session import Database
from gateway.delivery import Delivery
from gateway.dispatcher import Dispatcher
from gateway.router import Router
from gateway.scheduler import MOST_FIRES, Scheduler, due, event_of, next_fires
from gateway.store import functions, invocations, schedules
from gateway.store.invocations import QueuedEvent
from gateway.store.schedules import Fire, ScheduleRow
from tests.support.data_path import sample


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOON = at("2026-06-01T12:00")


def row(cron: str = "*/5 * * * *", since: float = NOON, **spec: Any) -> ScheduleRow:
    return ScheduleRow("default", "hello", ScheduleSpec("tick", cron, **spec), since)


def times(found: tuple[int, ...]) -> list[str]:
    return [f"{datetime.fromtimestamp(t, UTC):%H:%M}" for t in found]


# Pure


def test_nothing_is_due_before_the_first_fire_after_creation() -> None:
    assert due([row()], NOON) == []
    assert due([row()], NOON + 299) == []
    assert due([row()], NOON - 3600) == []
    (found,) = due([row()], NOON + 300)
    assert (times(found.run), found.missed, found.late) == (["12:05"], (), 0)


@pytest.mark.parametrize(
    ("missed", "run", "dropped"),
    [
        (Missed.ONCE, ["12:20"], ["12:05", "12:10", "12:15"]),
        (Missed.SKIP, ["12:20"], ["12:05", "12:10", "12:15"]),
        (Missed.ALL, ["12:05", "12:10", "12:15", "12:20"], []),
    ],
)
def test_fire_times_that_passed_while_down_follow_the_policy(
    missed: Missed, run: list[str], dropped: list[str]
) -> None:
    (found,) = due([row(missed=missed)], at("2026-06-01T12:20:10"))
    assert (times(found.run), times(found.missed), found.late) == (run, dropped, 3)


@pytest.mark.parametrize(("missed", "run"), [(Missed.ONCE, ["02:00"]), (Missed.SKIP, []), (Missed.ALL, ["02:00"])])
def test_a_single_missed_fire_runs_unless_it_is_to_be_skipped(missed: Missed, run: list[str]) -> None:
    nightly = row("0 2 * * *", missed=missed)
    (found,) = due([nightly], at("2026-06-02T02:10"))
    assert times(found.run) == run
    assert found.late == 1


def test_a_short_restart_misses_nothing() -> None:
    (found,) = due([row(missed=Missed.SKIP)], NOON + 300 + 59)
    assert (times(found.run), found.late) == (["12:05"], 0)


def test_however_long_it_was_down_the_catch_up_is_bounded() -> None:
    (found,) = due([row("* * * * *", since=at("2016-01-01"), missed=Missed.ALL)], NOON)
    assert len(found.run) == MOST_FIRES
    assert times(found.run)[-1] == "12:00"


def test_the_next_fires_of_a_nightly_job_are_one_a_night() -> None:
    spec = ScheduleSpec("n", "30 2 * * *", "Europe/Berlin")
    coming = next_fires(spec, at("2026-10-24"), 3)
    assert [f"{t:%d %H:%M}" for t in coming] == ["24 00:30", "25 00:30", "26 01:30"]


def test_the_event_is_the_input_as_it_stands_or_a_scheduled_event() -> None:
    assert json.loads(event_of(row(input={"kind": "tick"}), 0, "i")) == {"kind": "tick"}
    event = json.loads(event_of(row(), int(NOON), "i"))
    assert (event["detail-type"], event["time"], event["id"]) == ("Scheduled Event", "2026-06-01T12:00:00Z", "i")
    assert event["resources"] == ["arn:aws:events:local:default:rule/hello/tick"]


# On a database, with a clock that the test sets


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Bench:
    """A scheduler whose dispatcher stores events but runs none."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.clock = clock
        self.metrics = Metrics("test")
        delivery: Delivery = None  # type: ignore[assignment]
        self.dispatcher = Dispatcher(database, Router(), delivery, self.metrics, clock=clock)
        self.scheduler = Scheduler(database, self.dispatcher, self.metrics, clock=clock)

    def restart(self) -> Bench:
        return Bench(self.database, self.clock)

    async def make(self, *specs: ScheduleSpec) -> None:
        async with self.database.write() as tx:
            await functions.touch(tx, "default", "hello", self.clock.now)
            await schedules.replace(tx, "default", "hello", specs, self.clock.now)
        self.scheduler.changed()

    async def tick(self, moment: float) -> None:
        self.clock.now = moment
        await self.scheduler.tick()

    async def queued(self) -> list[QueuedEvent]:
        async with self.database.write() as tx:
            await invocations.recover(tx)
            return (await invocations.claim(tx, 9e9, lambda _: 9999, 9999))[0]

    async def fires(self, name: str = "tick") -> list[Fire]:
        async with self.database.read() as tx:
            return await schedules.history(tx, "default", "hello", name)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield Bench(database, Clock())
    await database.close()


async def test_each_fire_time_is_queued_once_however_often_the_clock_is_read(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "*/5 * * * *"))
    for second in range(0, 1201, 7):
        await bench.tick(NOON + second)
    events = await bench.queued()
    assert [e.meta["fire_time"] - NOON for e in events] == [300, 600, 900]
    await bench.tick(NOON + 1200)
    assert len(await bench.queued()) == 4
    assert all(e.trigger is Trigger.SCHEDULE for e in events)


async def test_no_restart_and_no_clock_set_back_fires_twice(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "*/5 * * * *"))
    await bench.tick(NOON + 301)
    await bench.tick(NOON - 3600)
    for second in range(-3600, 320, 50):
        await bench.tick(NOON + second)
    bench = bench.restart()
    await bench.tick(NOON + 310)
    assert len(await bench.queued()) == 1
    await bench.tick(NOON + 600)
    assert len(await bench.queued()) == 2


async def test_a_fire_time_that_is_written_already_queues_nothing(bench: Bench) -> None:
    """As after a database was restored: the watermark is old, the row is there."""
    await bench.make(ScheduleSpec("tick", "*/5 * * * *"))
    await bench.tick(NOON + 300)
    async with bench.database.write() as tx:
        (known,) = await schedules.every(tx)
        await schedules.considered(tx, known, NOON)
    bench = bench.restart()
    await bench.tick(NOON + 301)
    assert len(await bench.queued()) == 1


async def test_a_clock_that_was_days_ahead_does_not_silence_a_schedule(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "*/5 * * * *"))
    await bench.tick(NOON + 30 * 86_400)
    await bench.tick(NOON)
    before = len(await bench.queued())
    await bench.tick(NOON + 300)
    assert len(await bench.queued()) == before + 1


async def test_downtime_is_caught_up_once_and_counted(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "*/5 * * * *"))
    await bench.tick(NOON + 300)
    bench = bench.restart()
    await bench.tick(NOON + 600 + 600 + 30)  # 12:10 and 12:15 passed, 12:20 is now
    assert [f.status for f in await bench.fires()] == ["pending", "missed", "missed", "pending"]
    assert len(await bench.queued()) == 2
    assert sample(bench.metrics, "faas_schedule_missed_total", schedule="hello/tick") == 2


async def test_an_overlapping_run_is_skipped_where_that_is_asked_for(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "*/5 * * * *", overlap=Overlap.SKIP), ScheduleSpec("both", "*/5 * * * *"))
    await bench.tick(NOON + 300)
    await bench.tick(NOON + 600)
    assert [f.status for f in await bench.fires()] == ["skipped", "pending"]
    assert [f.status for f in await bench.fires("both")] == ["pending", "pending"]
    first = (await bench.fires())[-1].invocation
    async with bench.database.write() as tx:
        await schedules.ended(tx, first, "success", "", NOON + 610)
    await bench.tick(NOON + 900)
    assert [f.status for f in await bench.fires()] == ["pending", "skipped", "success"]


async def test_a_schedule_that_is_kept_goes_on_and_one_whose_times_change_counts_anew(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "*/5 * * * *"), ScheduleSpec("gone", "*/5 * * * *"))
    await bench.tick(NOON + 300)
    bench.clock.now = NOON + 890
    await bench.make(ScheduleSpec("tick", "*/5 * * * *", input={"new": 1}), ScheduleSpec("late", "*/5 * * * *"))
    await bench.tick(NOON + 900)
    assert [f.status for f in await bench.fires()] == ["pending", "missed", "pending"]
    assert len(await bench.fires("late")) == 1
    assert await bench.fires("gone") == []
    await bench.make(ScheduleSpec("tick", "* * * * *"))
    await bench.tick(NOON + 959)
    assert len(await bench.fires()) == 3
    await bench.tick(NOON + 960)
    assert len(await bench.fires()) == 4


async def test_a_years_nightly_runs_are_365_through_both_clock_changes(bench: Bench) -> None:
    bench.clock.now = at("2026-01-01")
    await bench.make(ScheduleSpec("tick", "30 2 * * *", "Europe/Berlin"))
    for day in range(366):
        await bench.tick(at("2026-01-01") + day * 86_400)
        await bench.tick(at("2026-01-01") + day * 86_400 + 5400)
    events = await bench.queued()
    spring = at("2026-03-29T01:30")  # 02:30 does not exist that night
    assert len({e.meta["fire_time"] for e in events}) == len(events)
    assert len(events) == 365
    assert spring not in {e.meta["fire_time"] for e in events}


async def test_history_is_cut(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "* * * * *"))
    for minute in range(1, 121):
        await bench.tick(NOON + minute * 60)
    assert len(await bench.fires()) == schedules.KEPT_FIRES
