"""Learned patterns at work: the scaler around a worker without containers, and the database between two runs."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.metrics import Metrics
from faas.protocol import Revision, RevisionKey
from faas.state.session import Database
from gateway.idle_patterns import IdlePatterns, PatternKeeper
from gateway.keepalive import Pattern
from gateway.store.idle_patterns import PatternRow
from tests.support.control import control
from tests.support.data_path import revision
from tests.unit.test_scaler import Parts

EVERY = 1800  # seconds
LEARNS = {"idle": "learn"}


class Day(Parts):
    """Ticks are ten seconds apart, but around what a test looks at."""

    async def until(self, moment: float, *, step: float = 10.0) -> None:
        while self.clock.now < moment:
            self.clock.now = min(self.clock.now + step, moment)
            await self.scaler.tick(self.clock.now)
            await self.settled()

    async def call(self, called: Revision) -> bool:
        """One call of a second; whether an instance was there."""
        load = self.collector.load(called.key, self.clock())
        load.enter(self.clock())
        warm = self.instances(called.key) > 0
        await self.scaler.poke(called)
        await self.settled()
        self.clock.now += 1
        load.leave(self.clock())
        return warm

    async def schedule(self, called: Revision, times: int) -> list[bool]:
        warm = []
        for _ in range(times):
            began = self.clock.now
            warm.append(await self.call(called))
            await self.until(began + EVERY)
        return warm

    def counted(self, outcome: str) -> float:
        labels = {"function": "hello", "outcome": outcome}
        return self.metrics.registry.get_sample_value("faas_prewarmed_total", labels) or 0.0


@pytest.fixture
async def day() -> Day:
    return Day()


async def test_a_schedules_instance_goes_after_a_minute_and_is_there_when_the_call_comes(day: Day) -> None:
    hello = revision(scale=LEARNS)
    await day.scaler.revision_live(hello)
    warm = await day.schedule(hello, 8)
    assert warm == [False] * 4 + [True] * 4
    assert (day.counted("used"), day.counted("unused")) == (4, 0)
    await day.call(hello)
    called = day.clock.now
    counts = []
    for moment in (59, 62, 1000, 1700, 1760):
        await day.until(called + moment, step=1)
        counts.append(day.instances(hello.key))
    assert counts == [1, 0, 0, 0, 1]


async def test_an_instance_that_no_call_came_for_goes_and_is_counted(day: Day) -> None:
    hello = revision(scale=LEARNS)
    await day.scaler.revision_live(hello)
    await day.schedule(hello, 6)
    await day.until(day.clock.now + 2 * EVERY)
    assert day.instances(hello.key) == 0
    assert (day.counted("used"), day.counted("unused")) == (2, 1)
    await day.until(day.clock.now + 10 * EVERY, step=30)
    assert day.counted("unused") == 1, "one call is expected, not one each half hour"


async def test_what_found_no_memory_is_not_counted(day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = revision(scale=LEARNS)
    await day.scaler.revision_live(hello)
    await day.schedule(hello, 5)

    async def no_room(revision: Revision, desired: int) -> None: ...

    await day.scaler.set_now(hello, 0)
    await day.call(hello)
    await day.until(day.clock.now + EVERY / 2)
    monkeypatch.setattr(day.worker, "scale", no_room)
    await day.until(day.clock.now + EVERY)
    assert day.counted("unused") == 0


async def test_a_deploy_forgets_nothing_and_only_what_is_live_is_started_ahead(day: Day) -> None:
    old, new = revision(scale=LEARNS), revision(number=2, scale=LEARNS)
    await day.scaler.revision_live(old)
    await day.schedule(old, 6)
    await day.call(old)
    began = day.clock.now - 1
    await day.until(began + 600)
    await day.scaler.revision_live(new)
    await day.until(began + EVERY)
    assert (day.instances(old.key), day.instances(new.key)) == (0, 1)
    assert await day.call(new)
    assert day.patterns.windows(new.key, 600) == day.patterns.windows(old.key, 600)
    seen = day.patterns.shown(new.key, 600)
    assert seen is not None
    assert seen["seen"] == 7
    for _ in range(3):  # nobody learns from calls of an old revision
        await day.call(old)
        await day.until(day.clock.now + 300)
    assert day.patterns.shown(new.key, 600) == seen


async def test_a_function_with_a_fixed_window_learns_nothing_and_a_deploy_ends_the_learning(day: Day) -> None:
    fixed, learns = revision(scale={"idle": "5m"}), revision(number=2, scale=LEARNS)
    await day.scaler.revision_live(fixed)
    await day.schedule(fixed, 5)
    assert day.patterns.shown(fixed.key, 300) is None
    await day.scaler.revision_live(learns)
    assert day.patterns.windows(learns.key, 600) is not None
    await day.scaler.revision_live(fixed)
    assert day.patterns.windows(fixed.key, 300) is None
    assert await day.schedule(fixed, 5) == [False] * 5


async def test_a_number_set_by_hand_holds_for_the_fixed_window_and_until_the_next_call(day: Day) -> None:
    hello = revision(scale=LEARNS)
    await day.scaler.revision_live(hello)
    await day.schedule(hello, 6)
    await day.call(hello)
    await day.scaler.set_now(hello, 2)
    await day.until(day.clock.now + 590)
    assert day.instances(hello.key) == 2
    await day.until(day.clock.now + 3 * EVERY)
    assert day.instances(hello.key) == 0
    assert day.counted("unused") == 0


async def test_a_deleted_functions_pattern_is_forgotten(day: Day) -> None:
    hello = revision(scale=LEARNS)
    await day.scaler.revision_live(hello)
    await day.schedule(hello, 6)
    await day.scaler.retire(hello.key)
    again = revision(number=2, scale=LEARNS)
    await day.scaler.revision_live(again)
    shown = day.patterns.shown(again.key, 600)
    assert shown is not None
    assert shown["seen"] == 0


# The database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    with sqlite3.connect(tmp_path / "faas.db") as plain:
        plain.execute("INSERT INTO functions VALUES ('default', 'hello', 1.0, 1.0)")
    plain.close()
    yield opened
    await opened.close()


async def test_what_was_learned_is_there_after_a_restart_and_the_expected_call_is_still_expected(
    day: Day, database: Database
) -> None:
    hello, wall = revision(scale=LEARNS), 1_900_000_000.0
    monotonic = day.clock.now
    day.patterns._wall = lambda: wall + day.clock.now - monotonic
    keeper = PatternKeeper(database, day.patterns)
    await keeper.start()
    await day.scaler.revision_live(hello)
    await day.schedule(hello, 6)
    await day.call(hello)
    await day.until(day.clock.now + 600)
    await keeper.stop()

    again = Day()  # the monotonic clock begins somewhere else
    off = 300.0
    again.patterns._wall = lambda: wall + day.clock.now - monotonic + off + again.clock.now - 1000.0
    restarted = PatternKeeper(database, again.patterns)
    await restarted.start()
    await again.scaler.revision_live(hello)
    assert again.patterns.windows(hello.key, 600) == day.patterns.windows(hello.key, 600)
    await again.until(1000 + EVERY - 600 - off - 100)
    assert again.instances(hello.key) == 0
    await again.until(1000 + EVERY - 600 - off)
    assert again.instances(hello.key) == 1
    assert await again.call(hello)
    shown = again.patterns.shown(hello.key, 600)
    assert shown is not None
    assert shown["seen"] == 7
    await restarted.stop()


async def test_only_what_has_changed_is_written_and_nothing_of_a_function_that_is_gone(
    day: Day, database: Database
) -> None:
    keeper = PatternKeeper(database, day.patterns)
    for name in ("hello", "gone"):
        await day.scaler.revision_live(revision(name, scale=LEARNS))
    assert len(day.patterns.changed()) == 2
    await keeper.write()
    assert day.patterns.changed() == []
    restarted = IdlePatterns(Metrics("test"))
    await PatternKeeper(database, restarted).start()
    assert list(restarted._learned) == [("default", "hello")]


def test_a_row_that_cannot_be_read_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    patterns = IdlePatterns(Metrics("test"))
    with caplog.at_level(logging.WARNING):
        patterns.take([PatternRow("default", "odd", "{}", None), PatternRow("default", "fine", Pattern().dump(), 1.0)])
    assert "odd: no pattern" in caplog.text
    assert list(patterns._learned) == [("default", "fine")]


def test_a_call_in_the_future_of_a_clock_that_was_set_back_is_no_call() -> None:
    patterns = IdlePatterns(Metrics("test"), clock=lambda: 50.0, wall=lambda: 1000.0)
    patterns.take(
        [PatternRow("default", "a", Pattern().dump(), 1001.0), PatternRow("default", "b", Pattern().dump(), 990.0)]
    )
    assert [learned.ended for learned in patterns._learned.values()] == [None, 40.0]


# The control API


async def test_a_function_shows_what_was_learned_of_it_and_a_delete_takes_it_along(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(scale=LEARNS)
        function = (await server.call("GET", "/v1/functions/hello")).json()
        assert function["spec"]["scale"]["idle"] == "learn"
        assert function["learned"] == {
            "linger_seconds": 60.0, "prewarm_seconds": 0.0, "keep_seconds": 600.0, "seen": 0,
            "reason": "0 of 3 idle times are known",
        }  # fmt: skip
        pattern = Pattern()
        for _ in range(5):
            pattern.record(3600.0)
        learned = server.gateway.path.patterns._learned["default", "hello"]
        learned.pattern, learned.windows = pattern, None
    async with control(tmp_path) as server:
        shown = (await server.call("GET", "/v1/functions/hello")).json()["learned"]
        assert shown["seen"] == 5
        assert shown["reason"].startswith("100% of the calls come 59m")
        await server.call("DELETE", "/v1/functions/hello")
        key = RevisionKey("default", "hello", 1)
        assert server.gateway.path.patterns.shown(key, 600) is None
    rows = sqlite3.connect(tmp_path / "faas.db").execute("SELECT count(*) FROM idle_patterns").fetchone()
    assert rows == (0,)


async def test_a_function_with_a_fixed_window_shows_nothing_learned(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        assert "learned" not in (await server.call("GET", "/v1/functions/hello")).json()
