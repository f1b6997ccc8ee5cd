"""How fast one function may grow, fed numbers and a clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.burst import FULL_SECONDS, Bucket, filled, take


def test_so_many_at_once_and_then_a_tenth_of_them_each_second() -> None:
    starts, bucket = take(None, 150, 0.0, 100)
    assert starts == 100
    assert take(bucket, 50, 0.05, 100)[0] == 0
    starts, bucket = take(bucket, 50, 1.0, 100)
    assert starts == 10
    starts, bucket = take(bucket, 40, 3.5, 100)
    assert starts == 25
    assert filled(bucket, 3.5 + FULL_SECONDS, 100) == 100


def test_a_burst_of_one_is_slow_and_not_stuck() -> None:
    starts, bucket = take(None, 2, 0.0, 1)
    assert starts == 1
    assert [take(bucket, 1, at, 1)[0] for at in (9.9, 10.0)] == [0, 1]


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 2000)), max_size=40),
)
def test_no_stretch_of_time_sees_more_starts_than_its_share(burst: int, asks: list[tuple[float, int]]) -> None:
    bucket: Bucket | None = None
    now, begun = 0.0, 0
    for pause, wanted in asks:
        now += pause
        starts, bucket = take(bucket, wanted, now, burst)
        assert 0 <= starts <= wanted
        begun += starts
        assert begun <= burst + now * burst / FULL_SECONDS + 1e-6
        assert 0 <= filled(bucket, now, burst) <= burst
