"""`Waiters`: invocations that wait for a slot, first come first served.

A wait that is over ends in Throttled, unless an instance that is starting will serve it by its position: that one is
waited for, as long as its launch takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from faas.errors import Throttled
from worker.instance import Instance

GRAIN_SECONDS = 0.001  # of a loop's timers


class Waiter:
    """One of them; `future` resolves with the instance whose slot it has."""

    __slots__ = ("due", "future", "overdue", "wait_seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, wait_seconds: float) -> None:
        self.future: asyncio.Future[Instance] = loop.create_future()
        self.wait_seconds = wait_seconds
        self.due = loop.time() + wait_seconds
        self.overdue = False


class Waiters:
    """`coming` says how many slots are on their way, `refusal` what is said after a wait of so many seconds."""

    def __init__(self, coming: Callable[[], int], refusal: Callable[[float], Throttled]) -> None:
        self.queue: deque[Waiter] = deque()
        self._coming = coming
        self._refusal = refusal
        self._timer: asyncio.TimerHandle | None = None  # one for all: it looks when the first wait may be over

    def __len__(self) -> int:
        return len(self.queue)

    def add(self, wait_seconds: float) -> Waiter:
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop, wait_seconds)
        self.queue.append(waiter)
        if self._timer is None or waiter.due < self._timer.when():
            self._look_at(waiter.due)
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """It went away."""
        if waiter in self.queue:
            self.queue.remove(waiter)

    def pop(self) -> Waiter | None:
        """The oldest that still waits."""
        while self.queue:
            waiter = self.queue.popleft()
            if not waiter.future.done():
                return waiter
        return None

    def fail_oldest(self, error: BaseException) -> bool:
        waiter = self.pop()
        if waiter is None:
            return False
        waiter.future.set_exception(error)
        return True

    def fail_all(self, error: BaseException) -> None:
        while self.fail_oldest(error):
            pass

    def expire(self) -> None:
        """Throttle those whose wait is over and whom no starting instance will serve. After each change of that."""
        coming = self._coming()
        for position, waiter in enumerate(list(self.queue)):
            if waiter.overdue and position >= coming:
                self.queue.remove(waiter)
                if not waiter.future.done():
                    waiter.future.set_exception(self._refusal(waiter.wait_seconds))

    def _look_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        """Some wait may be over. Nobody pays for this who is served in time."""
        self._timer = None
        now = asyncio.get_running_loop().time() + GRAIN_SECONDS
        for waiter in self.queue:
            waiter.overdue = waiter.overdue or waiter.due <= now
        self.expire()
        if coming := [waiter.due for waiter in self.queue if not waiter.overdue]:
            self._look_at(min(coming))
