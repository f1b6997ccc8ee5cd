"""One timer for all invocations of a revision."""

from __future__ import annotations

import asyncio
import time

from faas.errors import TimedOut
from tests.support.fake_driver import eventually
from worker.deadlines import Deadlines


class Limited:
    """Remembers when it was over time."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.begun = time.perf_counter()
        self.over: float | None = None
        self.others: list[Limited] = []
        deadlines.add(self, self.begun)

    def over_time(self, error: TimedOut) -> None:
        self.over = time.perf_counter() - self.begun
        for other in self.others:
            self.deadlines.discard(other)


async def test_each_has_its_whole_time_and_those_that_ended_are_left_alone() -> None:
    deadlines = Deadlines(0.1)
    first = Limited(deadlines)
    await asyncio.sleep(0.05)
    second, ended = Limited(deadlines), Limited(deadlines)
    deadlines.discard(ended)
    await eventually(lambda: second.over is not None)
    assert first.over is not None
    assert second.over is not None
    assert min(first.over, second.over) >= 0.1
    assert ended.over is None


async def test_time_that_begins_anew_is_whole_again_and_one_end_may_end_others() -> None:
    deadlines = Deadlines(0.1)
    again, killer, killed = Limited(deadlines), Limited(deadlines), Limited(deadlines)
    killer.others.append(killed)
    await asyncio.sleep(0.05)
    again.begun = time.perf_counter()
    deadlines.add(again, again.begun)
    await eventually(lambda: again.over is not None)
    assert again.over is not None
    assert again.over >= 0.1
    assert killer.over is not None
    assert killed.over is None


async def test_nothing_is_limited_after_the_close() -> None:
    deadlines = Deadlines(0.02)
    limited = Limited(deadlines)
    deadlines.close()
    await asyncio.sleep(0.05)
    assert limited.over is None
