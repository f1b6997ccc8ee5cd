"""Decisions, fed numbers and a clock."""

from __future__ import annotations

import pytest

from faas.spec import FunctionSpec, parse
from gateway.autoscaler import Panic, decide
from gateway.collector import Observed


def observed(
    demand: int = 0, peak: int | None = None, stable: float = 0, panic: float = 0, instances: int = 0
) -> Observed:
    return Observed(demand, demand if peak is None else peak, stable, panic, instances)


def spec(**keys: object) -> FunctionSpec:
    return parse({"name": "f", **keys})


def http(**scale: object) -> FunctionSpec:
    """Ten at once in an instance, seven aimed at."""
    return parse({"name": "f", "interface": "http", "concurrency": 10, "scale": {"target": 0.7, **scale}})


@pytest.mark.parametrize("demand", [1, 7, 50])
def test_with_concurrency_one_instances_follow_the_demand_at_once(demand: int) -> None:
    assert decide(spec(), observed(demand), 0).desired == demand


def test_instances_stay_while_any_moment_of_the_idle_window_needed_them() -> None:
    assert decide(spec(), observed(demand=1, peak=4, instances=4), 0).desired == 4


@pytest.mark.parametrize(("low", "live", "desired"), [(0, True, 0), (2, True, 2), (2, False, 0)])
def test_without_demand_min_remains_and_only_where_live_is(low: int, live: bool, desired: int) -> None:
    assert decide(spec(scale={"min": low}), observed(), 0, live=live).desired == desired


def test_max_bounds_everything() -> None:
    result = decide(spec(scale={"max": 3}), observed(400, peak=900), 0)
    assert result.desired == 3
    assert "held to 0..3" in result.reason


def test_what_is_not_known_is_said_and_not_guessed() -> None:
    result = decide(spec(scale={"min": 2}), None, 0)
    assert not result.valid


def test_from_zero_the_first_request_needs_one_instance_without_any_average() -> None:
    assert decide(http(), observed(1), 0).desired == 1
    assert decide(http(), observed(25), 0).desired == 3


@pytest.mark.parametrize(("stable", "desired"), [(6.9, 1), (7.0, 1), (7.1, 2), (35.0, 5), (35.1, 6)])
def test_http_functions_aim_at_the_target_of_their_concurrency(stable: float, desired: int) -> None:
    assert decide(http(), observed(1, stable=stable, panic=stable, instances=desired), 0).desired == desired


def test_a_burst_panics_and_does_not_come_down_for_a_minute() -> None:
    first = decide(http(), observed(40, stable=4, panic=40, instances=2), 100)
    assert first.desired == 6
    assert first.panic is not None
    later = decide(http(), observed(5, peak=5, stable=9, panic=5, instances=6), 130, panic=first.panic)
    assert later.desired == 6
    after = decide(http(), observed(5, peak=5, stable=9, panic=5, instances=6), 161, panic=later.panic)
    assert (after.desired, after.panic) == (2, None)


def test_averages_alone_never_grow_more_than_tenfold_at_once() -> None:
    assert decide(http(max=1000), observed(1, stable=5000, panic=1, instances=2), 0).desired == 20


def test_what_waits_now_is_not_kept_waiting_by_an_average() -> None:
    assert decide(http(max=1000), observed(300, stable=1, panic=1, instances=1), 0).desired == 30


def test_an_average_that_fades_does_not_outlive_the_idle_window() -> None:
    assert decide(http(), observed(demand=0, peak=0, stable=0.5, panic=0, instances=1), 0).desired == 0


def test_a_panic_never_shrinks_by_a_smaller_burst_after_it() -> None:
    result = decide(http(), observed(20, stable=2, panic=20, instances=1), 10, panic=Panic(50, 9))
    assert result.desired == 9
