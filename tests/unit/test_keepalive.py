"""What is learned of the times between calls, and a simulated day with it."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable

import pytest

from gateway.autoscaler import decide
from gateway.collector import Load, Observed
from gateway.keepalive import BEYOND, LINGER, Pattern, Windows, wanted, windows
from tests.support.simulated_day import MIX, compare
from tests.unit.test_autoscaler import http, observed, spec

MINUTE, HOUR = 60.0, 3600.0
FIXED = 600.0


def pattern(idles: Iterable[float]) -> Pattern:
    found = Pattern()
    for idle in idles:
        found.record(idle)
    return found


def jittered(every: float, jitter: float, count: int, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [every + rng.uniform(-jitter, jitter) for _ in range(count)]


@pytest.mark.parametrize(("every", "jitter"), [(5 * MINUTE, 1), (15 * MINUTE, 10), (HOUR, 60), (3 * HOUR, 20)])
def test_an_instance_of_a_schedule_goes_early_and_is_back_just_before_a_call(every: float, jitter: float) -> None:
    learned = windows(pattern(jittered(every, jitter, 10)), FIXED)
    assert every - jitter - 150 < learned.prewarm < every - jitter
    assert every + jitter < learned.end < every + jitter + 0.025 * every + 65
    assert [wanted(learned, 1000.0, 1000.0 + idle) for idle in (0, LINGER + 1, every - 5, every + 5, every * 2)] == [
        True, False, True, True, False,
    ]  # fmt: skip


def test_a_daily_schedule_is_learned_though_no_histogram_reaches_so_far() -> None:
    daily = pattern([24 * HOUR + late for late in (5.0, 40.0, 12.0, 8.0)])
    assert daily.bins == {}
    learned = windows(daily, FIXED)
    assert 24 * HOUR - 120 < learned.prewarm < 24 * HOUR
    assert learned.end < 24 * HOUR + 120


def test_days_that_have_nothing_in_common_are_not_waited_for() -> None:
    assert windows(pattern([6 * HOUR, 30 * HOUR, 11 * HOUR, 50 * HOUR]), FIXED).end == LINGER


@pytest.mark.parametrize("count", [0, 1, 2])
def test_until_a_pattern_is_known_the_fixed_window_holds(count: int) -> None:
    learned = windows(pattern([HOUR] * count), FIXED)
    assert (learned.prewarm, learned.keep) == (0.0, FIXED)
    assert learned.reason == f"{count} of 3 idle times are known"


def test_calls_within_ten_minutes_in_no_order_keep_the_fixed_window() -> None:
    rng = random.Random(3)
    learned = windows(pattern(rng.expovariate(1 / 120) for _ in range(300)), FIXED)
    assert (learned.prewarm, learned.keep) == (0.0, FIXED)


def test_an_instance_stays_for_longer_than_the_fixed_window_where_calls_come_soon_after_it() -> None:
    learned = windows(pattern([90, 150, 250, 640, 660] * 12), FIXED)
    assert learned.prewarm == 0.0
    assert 660 < learned.keep < 750


def test_calls_in_quick_succession_say_nothing_of_the_next_burst() -> None:
    found = pattern([2.0, LINGER, *[3.0] * 100, HOUR])
    assert found.seen == 1


def test_one_call_out_of_turn_does_not_spoil_a_schedule() -> None:
    learned = windows(pattern([*[HOUR] * 8, 7 * MINUTE, 53 * MINUTE, *[HOUR] * 2]), FIXED)
    assert learned.prewarm > 50 * MINUTE
    assert learned.end < 70 * MINUTE


def test_a_change_of_pattern_is_learned_within_ten_calls() -> None:
    found = pattern([15 * MINUTE] * 200)
    assert windows(found, FIXED).end < 20 * MINUTE
    for _ in range(10):
        found.record(50 * MINUTE)
    assert 45 * MINUTE < windows(found, FIXED).prewarm < 50 * MINUTE


def test_a_pattern_has_a_bounded_size_whatever_comes_and_survives_being_written() -> None:
    rng = random.Random(5)
    found = pattern(math.exp(rng.uniform(0, 12)) for _ in range(20_000))
    assert len(found.bins) <= 64
    assert len(found.beyond) == BEYOND
    text = found.dump()
    assert len(text) < 2048
    again = Pattern.load(text)
    assert again.seen == found.seen
    assert again.dump() == text
    assert windows(again, FIXED) == windows(found, FIXED)


@pytest.mark.parametrize("idle", [0.0, -5.0, math.inf, math.nan])
def test_a_time_that_is_none_teaches_nothing(idle: float) -> None:
    assert pattern([idle]) == Pattern()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"bins": {"900": 1}, "beyond": [], "far": 0, "seen": 1}', '{"bins": 3}',
     '{"bins": {}, "beyond": [NaN], "far": 0, "seen": 1}', '{"bins": {}, "beyond": [], "far": -1, "seen": 1}'],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Pattern.load(text)


def test_a_price_is_the_idle_time_and_the_cold_start() -> None:
    ahead = Windows(1000.0, 200.0, "")
    assert ahead.price(30, 600) == 30  # lingered
    assert ahead.price(500, 600) == LINGER + 600  # gone
    assert ahead.price(1050, 600) == LINGER + 50  # back
    assert ahead.price(5000, 600) == LINGER + 200 + 600  # back, and gone again
    stays = Windows(0.0, 300.0, "")
    assert (stays.price(200, 600), stays.price(400, 600)) == (200, 900)


# In the autoscaler

AHEAD = Windows(1000.0, 200.0, "as a test has it")


def ended(at: float, *, peak: int = 0, seeded: bool = False) -> Observed:
    return dataclasses.replace(observed(0, peak), ended=at, seeded=seeded)


@pytest.mark.parametrize(("since", "desired"), [(0, 3), (60, 3), (61, 0), (999, 0), (1000, 1), (1200, 1), (1201, 0)])
@pytest.mark.parametrize("concurrency", [1, 10])
def test_all_stay_a_minute_none_for_the_absence_and_one_is_back(since: int, desired: int, concurrency: int) -> None:
    function = spec() if concurrency == 1 else http()
    seen = ended(5000.0, peak=3 if concurrency == 1 else 25)
    assert decide(function, seen, 5000.0 + since, windows=AHEAD).desired == desired


def test_while_something_runs_the_fixed_rule_holds() -> None:
    assert decide(spec(), observed(1, peak=4), 9999, windows=AHEAD).desired == 4


def test_min_holds_whatever_was_learned() -> None:
    seen = ended(0.0)
    assert decide(spec(scale={"min": 2}), seen, 500.0, windows=AHEAD).desired == 2


def test_what_a_deploys_check_started_stays_for_the_fixed_window_and_the_call_is_still_expected() -> None:
    assert decide(spec(), ended(0.0, peak=1, seeded=True), 500.0, windows=AHEAD).desired == 1
    assert decide(spec(), ended(0.0, seeded=True), 500.0, windows=AHEAD).desired == 0
    assert decide(spec(), ended(0.0, seeded=True), 1100.0, windows=AHEAD).desired == 1


def test_only_the_time_without_anything_in_flight_is_idle_time() -> None:
    load, told = Load(0.0), list[float]()
    load.enter(1.0)
    load.learn = told.append
    load.enter(2.0)
    load.leave(50.0)
    load.leave(100.0)
    load.enter(400.0)
    load.enter(401.0)
    assert told == [300.0]
    load.leave(402.0)
    load.seed(2, 403.0)
    assert load.ended is None


# A day

SEED = 20_200_715


def test_a_simulated_day_has_fewer_cold_starts_and_no_more_idle_memory_than_ten_fixed_minutes() -> None:
    found = compare(SEED, {"10m": 600.0, "5m": 300.0, "learn": None}, step=15.0)
    print(f"seed {SEED}: cold starts, idle GB·h")
    for kind in (*MIX, "all"):
        row = (
            f"{name} {found[kind, name].cold} {found[kind, name].idle / HOUR:.1f}" for name in ("10m", "5m", "learn")
        )
        print(f"{kind}, {found[kind, '10m'].calls} calls: {'; '.join(row)}")
    fixed, learned = found["all", "10m"], found["all", "learn"]
    assert learned.calls == fixed.calls
    assert learned.cold < 0.75 * fixed.cold
    assert learned.idle <= 0.75 * fixed.idle
    for kind in MIX:
        fixed, learned = found[kind, "10m"], found[kind, "learn"]
        assert learned.idle <= 1.05 * fixed.idle, kind
        assert learned.cold <= 1.1 * fixed.cold or learned.idle <= 0.5 * fixed.idle, kind


def test_the_same_seed_is_the_same_day() -> None:
    one, other = (compare(1, {"learn": None}, step=300.0) for _ in range(2))
    assert one == other
