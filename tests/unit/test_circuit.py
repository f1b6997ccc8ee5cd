"""The circuit breaker's states, at times that the test says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import SpecError
from faas.rules import circuit
from faas.rules.circuit import Circuit
from gateway.edge.circuit import Breaker, Permit, State

RULE = Circuit(0.5, timedelta(seconds=30), 4, timedelta(seconds=10))


def call(breaker: Breaker, now: float, *, failed: bool | None) -> bool:
    """Whether a call that ends at once is let through."""
    if breaker.wait(now):
        return False
    breaker.end(breaker.begin(now), now, failed=failed)
    return True


def opened(rule: Circuit = RULE, at: float = 0.0) -> Breaker:
    breaker = Breaker(rule)
    for _ in range(rule.least):
        assert call(breaker, at, failed=True)
    assert breaker.state(at) is State.OPEN
    return breaker


def test_it_opens_at_the_share_of_failures_and_not_before_the_least_number() -> None:
    breaker = Breaker(RULE)
    for failed in (True, True, True):
        assert call(breaker, 0, failed=failed)
    assert breaker.state(0) is State.CLOSED
    call(breaker, 0, failed=False)  # three of four
    assert breaker.state(0) is State.OPEN
    breaker = Breaker(RULE)
    for failed in (False, False, False, True, True):  # two of five
        call(breaker, 0, failed=failed)
    assert breaker.state(0) is State.CLOSED
    call(breaker, 0, failed=True)  # three of six
    assert breaker.state(0) is State.OPEN


def test_failures_older_than_the_window_are_forgotten() -> None:
    breaker = Breaker(RULE)
    for _ in range(3):
        call(breaker, 0, failed=True)
    call(breaker, 31, failed=True)
    assert breaker.state(31) is State.CLOSED
    for _ in range(3):
        call(breaker, 50, failed=True)
    assert breaker.state(50) is State.OPEN


def test_open_it_refuses_until_its_time_is_over_and_says_how_long() -> None:
    breaker = opened()
    assert breaker.wait(0) == 10
    assert breaker.wait(7.5) == 2.5
    assert not call(breaker, 9.9, failed=False)
    assert breaker.wait(10) == 0


def test_half_open_one_call_at_a_time_tries() -> None:
    breaker = opened()
    probe = breaker.begin(10)
    assert breaker.state(10) is State.HALF_OPEN
    assert breaker.wait(10) > 0
    breaker.end(probe, 11, failed=None)  # its client went away: the next one tries
    assert breaker.wait(11) == 0
    probe = breaker.begin(11)
    assert breaker.wait(60) > 0
    breaker.end(probe, 61, failed=False)
    assert breaker.state(61) is State.CLOSED
    assert breaker.wait(61) == 0


def test_a_try_that_fails_opens_it_for_its_whole_time_again() -> None:
    breaker = opened()
    assert call(breaker, 12, failed=True)
    assert breaker.state(12) is State.OPEN
    assert breaker.wait(12) == 10


def test_closed_again_it_begins_to_count_anew() -> None:
    breaker = opened()
    assert call(breaker, 10, failed=False)
    for _ in range(3):
        assert call(breaker, 10, failed=True)
    assert breaker.state(10) is State.CLOSED


def test_what_was_under_way_when_it_opened_changes_nothing() -> None:
    breaker = Breaker(RULE)
    slow = breaker.begin(0)
    for _ in range(4):
        call(breaker, 0, failed=True)
    breaker.end(slow, 5, failed=False)
    assert breaker.state(5) is State.OPEN
    assert call(breaker, 10, failed=False)
    breaker.end(slow, 11, failed=True)
    assert breaker.state(11) is State.CLOSED


def test_refused_calls_and_clients_that_went_away_do_not_count() -> None:
    breaker = Breaker(RULE)
    for _ in range(100):
        assert call(breaker, 0, failed=None)
    for _ in range(3):
        call(breaker, 0, failed=True)
    assert breaker.state(0) is State.CLOSED


STEPS = st.lists(st.tuples(st.floats(0, 8), st.sampled_from([True, False, None]), st.booleans()), max_size=200)


@given(STEPS)
def test_whatever_happens_open_means_refused_and_half_open_has_one_call_under_way(
    steps: list[tuple[float, bool | None, bool]],
) -> None:
    breaker, now = Breaker(RULE), 0.0
    under_way: list[tuple[Permit, State]] = []
    for gap, failed, end_one in steps:
        now += gap
        if end_one and under_way:
            breaker.end(under_way.pop(0)[0], now, failed=failed)
            continue
        state = breaker.state(now)
        if breaker.wait(now) == 0:
            assert state is not State.OPEN
            under_way.append((breaker.begin(now), breaker.state(now)))
            trying = [one for one in under_way if one[0].era == under_way[-1][0].era and one[1] is State.HALF_OPEN]
            assert len(trying) <= 1
        else:
            assert state is not State.CLOSED
    for permit, _ in under_way:
        breaker.end(permit, now, failed=False)
    assert breaker.wait(now + 10) == 0  # nothing keeps it shut for ever


def test_the_rule_has_defaults_and_refuses_what_is_out_of_range() -> None:
    assert circuit.read("circuit", {"errors": 0.5}) == Circuit()
    assert circuit.read("circuit", {"window": "1m", "open": 5}).window == timedelta(minutes=1)
    for value, words in (
        ({"errors": 0}, "circuit.errors must be a number from 0.01 to 1.0"),
        ({"window": "11m"}, "circuit.window must be a duration from 1s to 10m"),
        ({"least": 0}, "circuit.least must be a whole number from 1 to 10000"),
        ({"open": "0s"}, "circuit.open must be a duration"),
        ({"opens": "1s"}, "unknown key circuit.opens"),
    ):
        with pytest.raises(SpecError, match=words):
            circuit.read("circuit", value)
