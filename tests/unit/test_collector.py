"""What is observed, fed a clock."""

from __future__ import annotations

import random

import pytest

from faas.protocol import RevisionKey
from gateway.collector import Collector, Load

KEY = RevisionKey("default", "hello", 1)


def test_the_peak_is_the_most_at_any_moment_of_the_window() -> None:
    load = Load(0)
    for _ in range(3):
        load.enter(10)
    load.leave(11)
    load.leave(20)
    assert load.peak(20, 300) == 3
    assert load.peak(311, 300) == 3  # three were in flight until 11
    assert load.peak(311.1, 300) == 2  # two until 20
    assert load.peak(1000, 300) == 1  # one still is
    load.leave(1000)
    assert load.peak(1300, 300) == 1
    assert load.peak(1300.1, 300) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_peak_equals_a_plain_search_over_everything_that_happened(seed: int) -> None:
    rng = random.Random(seed)
    load, now, levels = Load(0), 0.0, [(0.0, 0)]
    for _ in range(300):
        now += rng.random()
        if load.in_flight and rng.random() < 0.5:
            load.leave(now)
        else:
            load.enter(now)
        levels.append((now, load.in_flight))
        window = 5.0
        inside = [
            v for i, (t, v) in enumerate(levels) if (levels[i + 1][0] if i + 1 < len(levels) else now) >= now - window
        ]
        assert load.peak(now, window) == max(inside)


def test_averages_weigh_by_time() -> None:
    load = Load(0)
    load.enter(0)
    load.enter(0)
    for second in range(1, 61):
        if second == 31:
            load.leave(30)
            load.leave(30)
        load.sample(second)
    assert load.average(60, 60) == pytest.approx(1.0)
    assert load.average(60, 6) == 0.0


def test_an_average_over_a_window_that_has_just_begun_is_over_what_there_is() -> None:
    load = Load(100)
    load.enter(100)
    load.sample(101)
    assert load.average(102, 60) == pytest.approx(1.0)


def test_the_samples_of_an_hour_take_no_more_room_than_those_of_a_minute() -> None:
    load = Load(0)
    for second in range(1, 3601):
        load.enter(second)
        load.leave(second + 0.5)
        load.sample(second + 0.5)
    assert len(load._samples) < 70
    assert load.average(3600.5, 60) == pytest.approx(0.5, rel=0.05)
    assert len(load._peaks) == 1


def test_seeding_replaces_the_past() -> None:
    load = Load(0)
    for _ in range(5):
        load.enter(1)
    for _ in range(5):
        load.leave(2)
    load.seed(2, 3)
    assert load.peak(3, 300) == 2
    load.seed(0, 3)
    assert load.peak(3, 300) == 0


def test_who_was_in_flight_when_a_revision_was_forgotten_still_leaves() -> None:
    collector = Collector()
    load = collector.load(KEY, 0)
    load.enter(0)
    collector.forget(KEY)
    load.leave(1)
    assert collector.observe(KEY, 2, idle=300, instances=0).peak == 0
