"""Admission, slot by slot."""

from __future__ import annotations

import asyncio

import pytest

from faas.errors import Throttled
from faas.spec import Interface
from gateway.breaker import Breaker, Breakers
from tests.support.data_path import revision


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_slots_are_given_first_come_first_served_and_nobody_overtakes() -> None:
    breaker = Breaker(1)
    assert breaker.try_enter()
    order: list[int] = []

    async def one(number: int) -> None:
        await breaker.enter(5)
        order.append(number)

    tasks = [asyncio.create_task(one(n)) for n in range(5)]
    await turn()
    for _ in range(5):
        breaker.leave()
        assert not breaker.try_enter()  # the slot went to who waited
        await turn()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]
    breaker.leave()
    assert breaker.unused


async def test_a_full_queue_refuses_at_once() -> None:
    breaker = Breaker(1, queue_length=2)
    breaker.try_enter()
    waiting = [asyncio.create_task(breaker.enter(5)) for _ in range(2)]
    await turn()
    began = asyncio.get_running_loop().time()
    with pytest.raises(Throttled) as raised:
        await breaker.enter(5)
    assert asyncio.get_running_loop().time() - began < 0.5
    assert raised.value.reason == "ConcurrentInvocationLimitExceeded"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert breaker.waiting == 0


async def test_a_wait_that_is_over_is_throttled_and_leaves_the_queue() -> None:
    breaker = Breaker(1)
    breaker.try_enter()
    with pytest.raises(Throttled):
        await breaker.enter(0.01)
    with pytest.raises(Throttled):
        await breaker.enter(0)
    assert (breaker.inside, breaker.waiting) == (1, 0)


async def test_who_is_cancelled_in_the_turn_of_its_slot_hands_it_on() -> None:
    breaker = Breaker(1)
    breaker.try_enter()
    first, second = (asyncio.create_task(breaker.enter(5)) for _ in range(2))
    await turn()
    breaker.leave()  # first's slot …
    first.cancel()  # … which it will not take
    await asyncio.gather(first, return_exceptions=True)
    await asyncio.wait_for(second, 1)
    assert breaker.inside == 1
    breaker.leave()
    assert breaker.unused


async def test_the_cancelled_of_a_long_queue_lose_no_slot() -> None:
    breaker = Breaker(2)
    breaker.try_enter()
    breaker.try_enter()
    tasks = [asyncio.create_task(breaker.enter(5)) for _ in range(100)]
    await turn()
    for task in tasks[::2]:
        task.cancel()
    entered = 0
    for _ in range(50):
        breaker.leave()
        await turn()
        entered += 1
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(r is None for r in results) == entered == 50
    assert (breaker.inside, breaker.waiting) == (2, 0)


def test_a_revisions_limit_is_its_instances_times_their_concurrency() -> None:
    breakers = Breakers()
    http = revision(interface=Interface.HTTP, concurrency=20, scale={"max": 3})
    breaker = breakers.of(http)
    assert breaker.limit == 60
    assert breaker.try_enter()
    assert breakers.of(http) is breaker


def test_breakers_that_nobody_is_in_do_not_pile_up_and_one_that_is_used_stays() -> None:
    breakers, told = Breakers(), list[None]()
    breakers.changed = lambda: told.append(None)
    used = breakers.of(revision())
    assert used.try_enter()
    for number in range(2, 1000):
        breakers.of(revision(number=number))
        assert len(breakers) <= 64
    assert breakers.of(revision()) is used
    assert told


async def test_a_reserved_breaker_is_one_for_all_revisions_and_follows_the_number() -> None:
    breakers = Breakers()
    old, new = revision(), revision(number=2)
    alone = breakers.of(old)
    breakers.reserve("default", "hello", 1)
    shared = breakers.of(old)
    assert shared is not alone
    assert shared.try_enter()
    assert breakers.of(new) is shared
    with pytest.raises(Throttled) as refused:
        await shared.enter(0)
    assert refused.value.reason == "ReservedFunctionConcurrentInvocationLimitExceeded"
    waiting = [asyncio.create_task(shared.enter(5)) for _ in range(2)]
    await turn()
    breakers.reserve("default", "hello", 2)
    await turn()
    assert [task.done() for task in waiting] == [True, False]
    breakers.reserve("default", "hello", 0)  # who waits for what is over does not wait on
    await asyncio.gather(*waiting)
    assert breakers.of(old).limit == 50
    for _ in range(3):
        shared.leave()
    assert shared.unused
