"""When a canary is taken back, as a function of what was seen; and how the wish for it is read."""

from __future__ import annotations

import pytest

from faas.errors import InvalidInput
from gateway.edge.canary import rule
from gateway.edge.canary.judge import Totals, Window, verdict
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


def test_latency_is_compared_where_both_have_enough_calls() -> None:
    limits = Limits(latency=1.5, least=10)
    slow = Totals(20, timed=20, seconds=3.2)
    assert "160.0 ms in the mean, the stable revision's 100.0 ms" in verdict(
        limits, Totals(10, timed=10, seconds=1.0), slow
    )
    assert verdict(limits, Totals(9, timed=9, seconds=0.9), slow) == ""
    assert verdict(limits, Totals(10, timed=10, seconds=1.0), Totals(20, timed=20, seconds=3.0)) == ""


def test_a_window_forgets_what_is_older() -> None:
    window = Window(300)
    for second in range(0, 600, 10):
        window.add(float(second), failed=second < 300, seconds=0.1)
    seen = window.totals(595.0)
    assert (seen.calls, seen.failed) == (30, 0)
    assert seen.mean == pytest.approx(0.1)
    assert window.totals(5000.0).calls == 0
