"""What goes on although its caller is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from faas.background import to_its_end


async def begun(undone: list[int], fails: bool = False) -> tuple[asyncio.Task[int], threading.Event]:
    """A call that waits for a thread, and the event that lets the thread end."""
    running, may_end = threading.Event(), threading.Event()

    def work() -> int:
        running.set()
        assert may_end.wait(10)
        if fails:
            raise OSError("late")
        return 7

    task = asyncio.create_task(to_its_end(asyncio.to_thread(work), undo=undone.append))
    assert await asyncio.to_thread(running.wait, 10)
    return task, may_end


async def test_what_ends_while_somebody_waits_is_not_undone() -> None:
    undone: list[int] = []
    task, may_end = await begun(undone)
    may_end.set()
    assert (await task, undone) == (7, [])


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_hears_of_it_when_the_thread_has_ended_and_what_it_made_is_undone(fails: bool) -> None:
    undone: list[int] = []
    task, may_end = await begun(undone, fails)
    task.cancel()
    await asyncio.wait((task,), timeout=0.1)
    assert (task.done(), undone) == (False, [])
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone == ([] if fails else [7])
