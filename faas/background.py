"""`Background`: tasks that may outlive the call that started them, but never their owner, which waits for their end;
and `to_its_end`: what runs in a thread cannot be cancelled, so its caller waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("faas.background")


class Background:
    """Owns tasks: none is lost, none fails unseen."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work`; where it fails, that is logged under its name."""
        task = self.own(work, name)
        self.unheard(task)
        return task

    async def complete(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Await `work`; where the caller is cancelled (its client has gone) the work still goes on to its end."""
        return await self.heard(self.own(work, name))

    async def heard(self, task: asyncio.Task[T]) -> T:
        """Await a task of `own`, as `complete` does."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.unheard(task)
            raise

    def unheard(self, task: asyncio.Task[Any]) -> None:
        """Nobody awaits it: where it fails, that is logged."""
        task.add_done_callback(_log_failure)

    async def finish(self, seconds: float) -> None:
        """Wait for all, `seconds` at most; then cancel what is left."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel all and wait for their end."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def own(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work`, whose failure is for whoever awaits it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def to_its_end(work: Awaitable[T], undo: Callable[[T], object] | None = None) -> T:
    """Await `work`, which goes on in a thread whatever becomes of its caller. Where that is cancelled it is heard only
    when the work has ended: what belongs to it, a file, a lock, is nobody else's before. `undo` gets the result then,
    as a descriptor to be closed."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if task.exception() is None and undo is not None:  # the caller has gone: nobody hears of a failure either
            undo(task.result())
        raise


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed", task.get_name(), exc_info=error)
