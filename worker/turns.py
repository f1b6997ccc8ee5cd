"""`Turns`: how many launches go on at once. A launch is mostly CPU of the machine's: more than keep its cores busy only
take them from each other, and from instances that are warm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

INIT_SECONDS = 0.05  # of an init that belong to its launch's turn: to boot takes CPU, what comes then may be a wait


class Turn:
    """One launch's."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end: Callable[[], None] | None = on_end
        self._timer: asyncio.TimerHandle | None = None

    def init_begins(self) -> None:
        """From here on it lasts for `INIT_SECONDS` at most."""
        self._timer = asyncio.get_running_loop().call_later(INIT_SECONDS, self.end)

    def end(self) -> None:
        """No error where it has ended."""
        if self._timer is not None:
            self._timer.cancel()
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end()


class Turns:
    """`at_once` of them."""

    def __init__(self, at_once: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self.under_way = 0  # launches that wait for their turn, or have it

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Waits for one, the longest waiting first. It ends with the block at the latest."""
        self.under_way += 1
        try:
            await self._free.acquire()
        except BaseException:
            self.under_way -= 1
            raise
        turn = Turn(self._over)
        try:
            yield turn
        finally:
            turn.end()

    def _over(self) -> None:
        self.under_way -= 1
        self._free.release()
