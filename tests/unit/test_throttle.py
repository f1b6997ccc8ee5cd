"""Token buckets: never more than the burst and what has come in since, and a table that nobody can grow or empty."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import SpecError
from faas.rules import throttle
from faas.rules.throttle import Per, Throttle
from gateway.edge.throttle import LOOKED_AT, SHARED, Buckets, Rate, retry_after

START = 100_000.0
RATES = st.builds(Rate, st.floats(0.001, 100_000), st.integers(1, 1000))
GAPS = st.lists(st.floats(0, 10) | st.just(0.0) | st.floats(0, 0.001), min_size=1, max_size=200)


def asked(buckets: Buckets, who: str, now: float) -> bool:
    if buckets.wait(who, now):
        return False
    buckets.take(who, now)
    return True


@given(rate=RATES, gaps=GAPS)
def test_within_any_time_no_more_come_in_than_the_burst_and_what_the_rate_gives(rate: Rate, gaps: list[float]) -> None:
    buckets, now, admitted = Buckets(rate), START, []
    for gap in gaps:
        now += gap
        if asked(buckets, "", now):
            admitted.append(now)
    for first, begin in enumerate(admitted):
        for last in range(first, len(admitted)):
            came, passed = last - first + 1, admitted[last] - begin
            assert came <= rate.burst + rate.per_second * passed + 1e-4


@given(rate=RATES, gaps=GAPS)
def test_nobody_is_refused_while_a_token_is_there(rate: Rate, gaps: list[float]) -> None:
    """Against the textbook's bucket, which counts tokens."""
    buckets, now, tokens = Buckets(rate), START, float(rate.burst)
    for gap in gaps:
        now += gap
        tokens = min(rate.burst, tokens + gap * rate.per_second)
        if asked(buckets, "", now):
            assert tokens > 1 - 1e-4
            tokens -= 1
        else:
            assert tokens < 1 + 1e-4


@given(rate=RATES, gaps=GAPS)
def test_who_waits_as_long_as_he_is_told_comes_in_and_not_much_before(rate: Rate, gaps: list[float]) -> None:
    buckets, now = Buckets(rate), START
    for gap in gaps:
        now += gap
        asked(buckets, "", now)
    if wait := buckets.wait("", now):
        assert buckets.wait("", now + retry_after(wait)) == 0
        assert buckets.wait("", now + wait * 0.99) > 0 or wait < 1e-6
        assert retry_after(wait) == max(1, math.ceil(wait))


def test_the_burst_is_there_at_once_and_the_next_comes_when_its_token_has() -> None:
    buckets = Buckets(Rate(10, 3))
    assert [asked(buckets, "a", START) for _ in range(4)] == [True, True, True, False]
    assert buckets.wait("a", START) == pytest.approx(0.1)
    assert not asked(buckets, "a", START + 0.09)
    assert asked(buckets, "a", START + 0.1)
    assert asked(buckets, "b", START)


def test_a_refusal_takes_nothing() -> None:
    buckets = Buckets(Rate(1, 1))
    assert asked(buckets, "a", START)
    for _ in range(100):
        assert not asked(buckets, "a", START + 0.5)
    assert asked(buckets, "a", START + 1)


def test_a_table_never_grows_beyond_its_bound_and_forgets_no_bucket_that_is_not_full() -> None:
    buckets = Buckets(Rate(0.1, 2), most=100)
    while asked(buckets, "spent", START):
        pass
    for number in range(10_000):
        asked(buckets, f"attacker {number}", START + number * 0.0001)
    assert len(buckets) == 100
    assert not asked(buckets, "spent", START + 5)
    assert asked(buckets, "attacker 0", START + 5)  # known, and with a token left


def test_who_comes_with_more_addresses_than_the_table_holds_gets_no_more_than_the_shared_buckets_give() -> None:
    rate, most = Rate(0.01, 3), 100
    buckets = Buckets(rate, most=most)
    admitted = sum(asked(buckets, f"attacker {number}", START) for number in range(20_000) for _ in range(4))
    assert admitted <= (most + SHARED) * rate.burst


def test_buckets_that_are_full_again_make_room_for_newcomers() -> None:
    buckets = Buckets(Rate(1, 5), most=100)
    for number in range(100):
        asked(buckets, f"early {number}", START)
    later = START + 2
    for number in range(100 // LOOKED_AT):
        asked(buckets, f"late {number}", later)
    assert len(buckets) == 100 // LOOKED_AT
    for number in range(100 // LOOKED_AT):
        assert buckets._full_at[f"late {number}"] == later + 1


def test_one_bucket_that_is_not_full_does_not_keep_the_full_ones_behind_it() -> None:
    buckets = Buckets(Rate(0.1, 10), most=50)
    while asked(buckets, "spent", START):
        pass
    for number in range(49):
        asked(buckets, f"early {number}", START)
    for number in range(50):
        asked(buckets, f"late {number}", START + 50)
    assert len(buckets) == 50
    assert "spent" in buckets._full_at
    assert not any(who.startswith("early") for who in buckets._full_at)


def test_a_throttle_reads_its_rate_and_has_a_seconds_burst_where_none_is_written() -> None:
    assert throttle.read("throttle", {"rate": 100, "burst": 200, "per": "address"}) == Throttle(100.0, 200, Per.ADDRESS)
    assert throttle.read("throttle", {"rate": 2.5}) == Throttle(2.5, 3, Per.ALL)
    assert throttle.read("throttle", {"rate": 0.01}).burst == 1


@pytest.mark.parametrize(
    ("value", "key", "words"),
    [
        ({"burst": 1}, "throttle", "throttle needs rate"),
        ({"rate": 0}, "throttle.rate", "a number from 0.001 to 100000.0"),
        ({"rate": float("nan")}, "throttle.rate", "a number from"),
        ({"rate": 1, "burst": 0}, "throttle.burst", "a whole number from 1 to 100000"),
        ({"rate": 1, "burst": 1.5}, "throttle.burst", "a whole number"),
        ({"rate": 1, "per": "ip"}, "throttle.per", "one of all, key, address"),
        ({"rate": 1, "bursts": 1}, "throttle.bursts", "unknown key"),
        (5, "throttle", "must be a table"),
    ],
)
def test_a_throttle_that_says_nothing_clear_is_refused(value: object, key: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        throttle.read("throttle", value)
    assert caught.value.key == key
