"""When a canary is taken back, as a function of what was seen; and how the wish for it is read."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from faas.errors import InvalidInput
from gateway.edge.canary import rule
from gateway.edge.canary.judge import BINS, SLICES, Totals, Window, bin_of, verdict
from gateway.edge.canary.rule import Limits


def test_what_is_written_is_read_back() -> None:
    limits = rule.limits("errors=5%, latency=1.5x,least=20,window=90s")
    assert limits == Limits(5.0, 1.5, 20, 90.0)
    assert rule.limits(str(limits)) == limits
    assert rule.limits("errors=0.5") == Limits(0.5)
    assert rule.limits("") is None


@pytest.mark.parametrize(
    "text",
    ["least=50", "errors=", "errors=-1%", "errors=101%", "latency=0.5x", "errors=5%,errors=6%", "error=5%", "errors=5x",
     "errors=5%,least=0", "errors=5%,least=1.5", "errors=5%,window=1s", "errors=5%,window=2h", "errors=nan", "x" * 300,
     7, None],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(text: object) -> None:
    with pytest.raises(InvalidInput):
        rule.limits(text)


@pytest.mark.parametrize(
    "value", [{"v7": 101}, {"v7": -1}, {"v7": "10"}, {"v7": True}, {"seven": 1}, {"v7": 1, "v8": 1}, [], 7, {"v٣": 1}]
)
def test_weights_are_of_one_revision_and_percent(value: object) -> None:
    with pytest.raises(InvalidInput):
        rule.weight(value)


def test_weights_name_the_revision_as_v7_or_7() -> None:
    assert rule.weight({"v7": 10}) == rule.weight({"7": 10}) == (7, 10.0)
    assert rule.weight({}) is None


@pytest.mark.parametrize("value", ["ip", "header:", "header:a b", "header:X_User", 7])
def test_sticky_is_one_of_three(value: object) -> None:
    with pytest.raises(InvalidInput):
        rule.sticky(value)
    assert rule.sticky("header:X-User") == "header:x-user"


def test_errors_count_beside_those_of_the_stable_revision() -> None:
    limits = Limits(errors=5.0, least=10)
    stable = Totals(1000, failed=40)  # 4 %
    assert verdict(limits, stable, Totals(100, failed=9)) == ""
    assert "10.0 % of its 100 calls failed, 4.0 % of the stable" in verdict(limits, stable, Totals(100, failed=10))


def test_nothing_is_said_before_there_are_enough_calls() -> None:
    limits = Limits(errors=5.0, latency=1.5, least=10)
    assert verdict(limits, Totals(), Totals(9, failed=9)) == ""
    assert verdict(limits, Totals(), Totals(10, failed=10)) != ""  # nobody calls the stable one: no error is usual


def timed(*kinds: tuple[int, float]) -> Totals:
    """So many calls that took so many seconds each."""
    times: Counter[int] = Counter()
    for count, seconds in kinds:
        times[bin_of(seconds)] += count
    return Totals(times.total(), times=times)


def test_latency_is_compared_where_both_have_enough_calls() -> None:
    limits = Limits(latency=1.5, least=30)
    slow = timed((40, 0.16))
    assert "50 % of its calls end within" in verdict(limits, timed((30, 0.1)), slow)
    assert verdict(limits, timed((29, 0.1)), slow) == ""
    assert verdict(limits, timed((30, 0.1)), timed((40, 0.14))) == ""


def test_a_tail_that_grows_is_seen_where_the_mean_and_the_median_stay() -> None:
    limits = Limits(latency=1.5)
    usual, tail = timed((9_900, 0.1), (100, 0.12)), timed((9_800, 0.09), (200, 0.5))
    assert "99 % of its calls end within" in verdict(limits, usual, tail)
    assert verdict(limits, tail, usual) == ""


def test_one_slow_call_of_few_is_no_tail() -> None:
    limits = Limits(latency=1.5)
    few = timed((98, 0.1), (2, 30.0))
    assert verdict(limits, timed((10_000, 0.1)), few) == "", "its mean is seven times the other's"
    assert "90 % of its calls" in verdict(limits, timed((10_000, 0.1)), timed((85, 0.1), (15, 1.0)))


def test_a_slow_tail_that_the_stable_revision_has_too_hides_nothing() -> None:
    limits = Limits(latency=1.5)
    stable, canary = timed((980, 0.01), (20, 20.0)), timed((980, 0.05), (20, 20.0))
    assert "90 % of its calls" in verdict(limits, stable, canary), "five times as slow, by the mean a tenth"


@pytest.mark.parametrize("seed", range(5))
def test_two_that_do_the_same_with_a_long_tail_are_left_alone(seed: int) -> None:
    chance = random.Random(seed)
    limits = Limits(errors=5.0, latency=2.0)
    windows = Window(300), Window(300)
    for call in range(20_000):
        side = chance.random() < 0.1
        windows[side].add(call / 100, failed=False, seconds=chance.lognormvariate(-3, 1))
        if call % 100 == 0:
            assert verdict(limits, *(window.totals(call / 100) for window in windows)) == ""


def test_durations_are_known_to_five_percent_whatever_they_are() -> None:
    for seconds in (0.0002, 0.0137, 0.1, 1.0, 29.9, 899.0):
        assert seconds * 0.999 <= timed((5, seconds)).quantile(0.5) <= seconds * 1.051
    assert (bin_of(0.0), bin_of(-1.0), bin_of(1e9)) == (0, 0, BINS - 1)
    assert timed((1, 0.1), (9, 1.0)).quantile(0.1) < 0.11
    assert Totals().quantile(0.99) == 0.0


def test_a_window_forgets_what_is_older() -> None:
    window = Window(300)
    for second in range(0, 600, 10):
        window.add(float(second), failed=second < 300, seconds=0.1)
    seen = window.totals(595.0)
    assert (seen.calls, seen.failed) == (30, 0)
    assert seen.quantile(0.5) == pytest.approx(0.1, rel=0.05)
    assert window.totals(5000.0).calls == 0


def test_a_window_does_not_grow_with_its_calls() -> None:
    window, chance = Window(300), random.Random(1)
    for call in range(30_000):
        window.add(call / 10, failed=False, seconds=chance.lognormvariate(0, 5))
    assert len(window._slices) <= SLICES + 1
    assert all(len(totals.times) <= BINS for _, totals in window._slices)
