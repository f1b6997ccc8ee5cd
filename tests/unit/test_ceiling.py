"""The ceiling over all functions: room, turns, reservations."""

from __future__ import annotations

import asyncio

import pytest

from faas.errors import SpecError, Throttled
from gateway.ceiling import Ceiling


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_becomes_free_goes_to_each_function_in_turn_and_within_one_in_order() -> None:
    ceiling = Ceiling(1)
    assert ceiling.try_enter()
    order: list[str] = []

    async def one(function: str, number: int) -> None:
        await ceiling.enter(function, 5)
        order.append(f"{function}{number}")

    flood = [asyncio.create_task(one("flood", n)) for n in range(4)]
    await turn()
    others = [asyncio.create_task(one(name, 0)) for name in ("a", "b")]
    await turn()
    for _ in range(6):
        assert not ceiling.try_enter(), "nobody overtakes who waits"
        ceiling.leave()
        await turn()
    await asyncio.gather(*flood, *others)
    assert order == ["flood0", "a0", "b0", "flood1", "flood2", "flood3"]
    ceiling.leave()
    assert (ceiling.inside, ceiling.waiting) == (0, 0)


async def test_a_wait_that_is_over_is_throttled_with_lambdas_reason_and_leaves_nothing() -> None:
    ceiling = Ceiling(1)
    ceiling.try_enter()
    for seconds in (0.0, 0.01):
        with pytest.raises(Throttled) as refused:
            await ceiling.enter("a", seconds)
        assert refused.value.reason == "ConcurrentInvocationLimitExceeded"
        assert "max_concurrency" in refused.value.hint
    assert (ceiling.inside, ceiling.waiting) == (1, 0)


async def test_who_is_cancelled_in_the_turn_of_its_room_hands_it_on() -> None:
    ceiling = Ceiling(1)
    ceiling.try_enter()
    first, second = (asyncio.create_task(ceiling.enter("a", 5)) for _ in range(2))
    await turn()
    ceiling.leave()  # first's …
    first.cancel()  # … who will not take it
    await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(1):
        await second
    assert ceiling.inside == 1


async def test_a_reservation_takes_its_whole_number_from_what_others_may_use() -> None:
    ceiling = Ceiling(10)
    ceiling.reserve("kept", 7)
    assert [ceiling.try_enter() for _ in range(4)] == [True, True, True, False]
    waiting = asyncio.create_task(ceiling.enter("a", 5))
    await turn()
    ceiling.reserve("kept", 6)
    async with asyncio.timeout(1):
        await waiting
    ceiling.reserve("kept", 9)
    assert ceiling.inside == 4, "who is inside stays"
    ceiling.leave()
    assert not ceiling.try_enter()


@pytest.mark.parametrize(("limit", "most"), [(1000, 900), (5000, 4900), (100, 90), (15, 13), (1, 0)])
def test_a_hundred_or_a_tenth_of_a_small_ceiling_stay_for_all(limit: int, most: int) -> None:
    ceiling = Ceiling(limit)
    if most:
        ceiling.reserve("a", most)
    with pytest.raises(SpecError) as refused:
        ceiling.reserve("b", 1)
    assert str(limit) in refused.value.message
    assert str(most) in refused.value.message
    ceiling.reserve("a", 0)
    assert ceiling.open_to_all == limit
