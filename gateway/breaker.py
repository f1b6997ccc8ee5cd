"""Admission: how many invocations of a revision may be inside at once, and how many may wait for that.

Inside: `scale.max` × `concurrency`. In front of it a bounded queue, first come first served; what finds the queue
full is refused at once, which costs next to nothing, instead of holding memory until it would be refused anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque

from faas.errors import Throttled
from faas.protocol import Revision, RevisionKey

QUEUE_LENGTH = 1000  # waiting invocations of one revision; how many bytes they hold, `faas.bodies` bounds


class Breaker:
    """One revision's slots and queue."""

    __slots__ = ("_queue_length", "_waiters", "inside", "limit")

    def __init__(self, limit: int, queue_length: int = QUEUE_LENGTH) -> None:
        self.limit = limit
        self.inside = 0
        self._queue_length = queue_length
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def unused(self) -> bool:
        return not self.inside and not self._waiters

    def try_enter(self) -> bool:
        """Take a slot that is free now; nobody overtakes the queue."""
        if self.inside < self.limit and not self._waiters:
            self.inside += 1
            return True
        return False

    async def enter(self, wait_seconds: float) -> None:
        """Wait in the queue for a slot. Raises Throttled when it is full, or when the wait is over."""
        if self.try_enter():
            return
        if wait_seconds <= 0:
            raise Throttled(f"all {self.limit} slots of this function are taken")
        if len(self._waiters) >= self._queue_length:
            raise Throttled(f"{self._queue_length} invocations of this function wait already")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(wait_seconds):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # the slot came in the same turn as the end of the wait: hand it on
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise Throttled(f"no slot of this function was free within {wait_seconds:g} s") from None
            raise

    def leave(self) -> None:
        """Give the slot to the first who waits, else back."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():  # done here means cancelled: whoever waited is on the way out
                waiter.set_result(None)
                return
        self.inside -= 1


class Breakers:
    """The breakers in use. One that nobody is in is dropped, so that old revisions leave nothing behind."""

    def __init__(self, queue_length: int = QUEUE_LENGTH) -> None:
        self._queue_length = queue_length
        self._breakers: dict[RevisionKey, Breaker] = {}

    def of(self, revision: Revision) -> Breaker:
        breaker = self._breakers.get(revision.key)
        if breaker is None:
            limit = revision.spec.scale.max * revision.spec.concurrency
            breaker = self._breakers[revision.key] = Breaker(limit, self._queue_length)
        return breaker

    def leave(self, key: RevisionKey, breaker: Breaker) -> None:
        breaker.leave()
        self.forget_unused(key, breaker)

    def forget_unused(self, key: RevisionKey, breaker: Breaker) -> None:
        if breaker.unused and self._breakers.get(key) is breaker:
            del self._breakers[key]

    def __len__(self) -> int:
        return len(self._breakers)
