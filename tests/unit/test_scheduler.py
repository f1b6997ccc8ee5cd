"""Schedules: what fires when, once per fire time, whatever the clock and the server do."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from faas.leases import Trigger
from faas.metrics import Metrics
from faas.spec import Missed, Overlap, ScheduleSpec
from faas.state.session import Database, Tx
from gateway import scheduler
from gateway.delivery import Delivery
from gateway.dispatcher import Dispatcher
from gateway.router import Router
from gateway.scheduler import MOST_FIRES, ROWS_AT_ONCE, Due, Scheduler, due, event_of, next_fires
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
    assert (found.cut, found.late) == (found.run[0] - 60, MOST_FIRES - 1)
    (found,) = due([row("* * * * *", since=NOON - MOST_FIRES * 60, missed=Missed.ALL)], NOON)
    assert (len(found.run), found.cut) == (MOST_FIRES, None)


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
            await tx.run_sync(schedules.replace, "default", "hello", specs, self.clock.now)
        self.scheduler.changed()

    async def tick(self, moment: float) -> None:
        self.clock.now = moment
        await self.scheduler.tick()

    async def queued(self) -> list[QueuedEvent]:
        def taken(tx: Tx) -> list[QueuedEvent]:
            invocations.recover(tx)
            counts, _ = invocations.due(tx, 9e9)
            return invocations.claim(tx, 9e9, counts)

        return await self.database.change(taken)

    async def fires(self, name: str = "tick") -> list[Fire]:
        async with self.database.read() as tx:
            return await tx.run_sync(schedules.history, "default", "hello", name)


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
        (known,) = await tx.run_sync(schedules.every)
        await tx.run_sync(schedules.considered, known, NOON)
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
        await tx.run_sync(schedules.ended, first, "success", "", NOON + 610)
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
    for minute in range(1, schedules.KEPT_FIRES + 20):
        await bench.tick(NOON + minute * 60)
        async with bench.database.write() as tx:
            await tx.run_sync(
                schedules.ended,
                (await tx.run_sync(schedules.history, "default", "hello", "tick"))[0].invocation,
                "ok",
                "",
                0,
            )
    assert len(await bench.fires()) == schedules.KEPT_FIRES


async def test_a_run_that_has_not_ended_is_never_cut_and_never_overlapped(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "* * * * *", overlap=Overlap.SKIP))
    for minute in range(1, schedules.KEPT_FIRES + 20):
        await bench.tick(NOON + minute * 60)
    fires = await bench.fires()
    assert (fires[-1].fire_time, fires[-1].status) == (int(NOON) + 60, "pending")
    assert {fire.status for fire in fires[:-1]} == {"skipped"}
    assert len(await bench.queued()) == 1


async def test_what_a_long_downtime_missed_beyond_the_newest_hundred_is_recorded(bench: Bench) -> None:
    await bench.make(ScheduleSpec("tick", "* * * * *", missed=Missed.ALL))
    await bench.tick(NOON + 1000 * 60)
    fires = await bench.fires()
    assert [fire.status for fire in fires] == ["pending"] * MOST_FIRES + ["missed"]
    assert fires[-1].error == "and every fire time before it since 2026-06-01 12:00 UTC"
    await bench.tick(NOON + 1000 * 60 + 1)
    assert len(await bench.fires()) == MOST_FIRES + 1


async def test_catching_up_leaves_the_loop_to_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are worked out in threads, a few schedules at once; what they make due is queued before the next few."""
    specs = [ScheduleSpec(f"s{n}", "* * * * *") for n in range(2 * ROWS_AT_ONCE + 1)]
    await bench.make(*specs)
    await bench.tick(NOON)
    threads: list[tuple[int, int]] = []

    def watched(rows: Collection[ScheduleRow], at: float) -> list[Due]:
        threads.append((threading.get_ident(), len(rows)))
        return due(rows, at)

    monkeypatch.setattr(scheduler, "due", watched)
    await bench.tick(NOON + 60)
    assert threading.get_ident() not in {thread for thread, _ in threads}
    assert [count for _, count in threads] == [ROWS_AT_ONCE, ROWS_AT_ONCE, 1]
    assert len(await bench.queued()) == len(specs)


async def test_a_schedule_that_goes_or_changes_while_its_times_are_worked_out_does_not_fire(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.make(*(ScheduleSpec(name, "* * * * *") for name in ("tick", "gone", "kept")))
    await bench.tick(NOON)
    loop = asyncio.get_running_loop()

    def meanwhile(rows: Collection[ScheduleRow], at: float) -> list[Due]:
        specs = (ScheduleSpec("tick", "0 * * * *"), ScheduleSpec("kept", "* * * * *"))
        asyncio.run_coroutine_threadsafe(bench.make(*specs), loop).result(10)
        return due(rows, at)

    monkeypatch.setattr(scheduler, "due", meanwhile)
    await bench.tick(NOON + 60)
    assert [event.meta["schedule"] for event in await bench.queued()] == ["kept"]
