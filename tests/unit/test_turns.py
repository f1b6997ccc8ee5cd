"""Launches at once: who waits, who goes on, and whose turn ends before its launch."""

from __future__ import annotations

import asyncio

import pytest

from worker.turns import Turns


class Launch:
    """One that goes on until it is told to end."""

    def __init__(self, turns: Turns, *, init: bool = False) -> None:
        self.begun = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(turns, init))

    async def _run(self, turns: Turns, init: bool) -> None:
        async with turns.turn() as turn:
            self.begun = True
            if init:
                turn.init_begins()
            await self.end.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def begun(turns: Turns, *, init: bool = False, count: int = 3) -> list[Launch]:
    made = [Launch(turns, init=init) for _ in range(count)]
    await settled()
    return made


async def test_the_longest_waiting_is_next() -> None:
    turns = Turns(1)
    launches = await begun(turns)
    for number, launch in enumerate(launches):
        assert [one.begun for one in launches] == [n <= number for n in range(3)]
        assert turns.under_way == 3 - number
        launch.end.set()
        await settled()
    assert turns.under_way == 0


async def test_a_long_init_keeps_nobody_waiting_and_ends_no_turn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.turns.INIT_SECONDS", 0.02)
    turns = Turns(1)
    launches = await begun(turns, init=True)
    async with asyncio.timeout(5):
        while not launches[2].begun:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
        while turns.under_way:  # noqa: ASYNC110 - the same
            await asyncio.sleep(0.01)
    for launch in launches:
        launch.end.set()
    await settled()
    assert turns.under_way == 0
    assert [launch.begun for launch in await begun(turns)] == [True, False, False]


async def test_who_is_called_off_while_waiting_leaves_its_place() -> None:
    turns = Turns(1)
    first, second, third = await begun(turns)
    second.task.cancel()
    await settled()
    assert turns.under_way == 2
    first.end.set()
    await settled()
    assert third.begun
    third.task.cancel()
    await settled()
    assert turns.under_way == 0
