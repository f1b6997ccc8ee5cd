"""Admission: how many invocations of a revision may be inside at once, and how many may wait for that.

Inside: `scale.max` × `concurrency`; of a function with a reservation, what it has reserved, for all its revisions
together. In front of it a bounded queue, first come first served; what finds the queue full is refused at once, which
costs next to nothing, instead of holding memory until it would be refused anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from faas.errors import Throttled
from faas.protocol import Revision, RevisionKey

CONCURRENCY = "ConcurrentInvocationLimitExceeded"  # reasons, as on Lambda
RESERVED = "ReservedFunctionConcurrentInvocationLimitExceeded"
Key = RevisionKey | tuple[str, str]  # a function by namespace and name
SWEEP_LEAST = 64  # breakers
QUEUE_LENGTH = 1000  # waiting invocations of one revision; how many bytes they hold, `faas.bodies` bounds


class Waiter(Protocol):
    """Who stands in a queue: a future, or something as cheap as one call."""

    def done(self) -> bool:
        """Whether it waits no more."""
        ...

    def set_result(self, result: None, /) -> None:
        """The slot is its own."""
        ...


class Breaker:
    """The slots and the queue of one revision, or, where `reserved`, of one function."""

    __slots__ = ("_queue_length", "exempt", "inside", "is_handing_on", "key", "limit", "reserved", "waiters")

    def __init__(
        self,
        limit: int,
        queue_length: int = QUEUE_LENGTH,
        *,
        key: Key | None = None,
        reserved: bool = False,
        exempt: bool = False,
    ) -> None:
        self.limit = limit
        self.key = key
        self.reserved = reserved
        self.exempt = exempt  # what is inside counts under the ceiling already
        self.inside = 0
        self._queue_length = queue_length
        self.waiters: deque[Waiter] = deque()
        self.is_handing_on = False  # a slot, to one who takes it from within the leaving of another

    @property
    def waiting(self) -> int:
        return len(self.waiters)

    @property
    def unused(self) -> bool:
        return not self.inside and not self.waiters

    def try_enter(self) -> bool:
        """Take a slot that is free now; nobody overtakes the queue."""
        if self.inside < self.limit and not self.waiters:
            self.inside += 1
            return True
        return False

    async def enter(self, wait_seconds: float) -> None:
        """Wait in the queue for a slot. Raises Throttled when it is full, or when the wait is over."""
        if self.try_enter():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line_up(waiter, wait_seconds)
        try:
            async with asyncio.timeout(wait_seconds):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # the slot came in the same turn as the end of the wait: hand it on
            else:
                self.step_out(waiter)
            if isinstance(error, TimeoutError):
                raise self.too_late(wait_seconds) from None
            raise

    def line_up(self, waiter: Waiter, wait_seconds: float) -> None:
        """Have `waiter` told when a slot is its own: its `set_result` is called by whoever leaves, and may raise
        nothing. Raises Throttled when the queue is full or there is no time to wait."""
        if wait_seconds <= 0:
            raise self._refusal(f"all {self.limit} slots of this function are taken")
        if len(self.waiters) >= self._queue_length:
            raise self._refusal(f"{self._queue_length} invocations of this function wait already")
        self.waiters.append(waiter)

    def step_out(self, waiter: Waiter) -> None:
        """It waits no more; nothing where it does not stand in the queue."""
        if waiter in self.waiters:
            self.waiters.remove(waiter)

    def too_late(self, wait_seconds: float) -> Throttled:
        """What to tell who has waited so long for nothing."""
        return self._refusal(f"no slot of this function was free within {wait_seconds:g} s")

    def leave(self) -> None:
        """Give the slot to the first who waits, else back."""
        self.inside -= 1
        if self.waiters:
            self._admit()

    def resize(self, limit: int) -> None:
        """Who is inside beyond a lower limit stays."""
        self.limit = limit
        self._admit()

    def _admit(self) -> None:
        while self.waiters and self.inside < self.limit:
            waiter = self.waiters.popleft()
            if not waiter.done():  # done here means cancelled: whoever waited is on the way out
                self.inside += 1
                waiter.set_result(None)

    def _refusal(self, message: str) -> Throttled:
        return Throttled(message, reason=RESERVED if self.reserved else CONCURRENCY)


class Breakers:
    """The breakers in use. Those that nobody is in are dropped now and then, so that old revisions leave nothing.

    `changed` is called where a revision's breaker may not be what it was.
    """

    def __init__(self) -> None:
        self._breakers: dict[Key, Breaker] = {}
        self._sweep_at = SWEEP_LEAST
        self.changed: Callable[[], None] = lambda: None
        self._reserved: dict[tuple[str, str], tuple[int, bool]] = {}  # slots, and whether the ceiling has counted them

    def reserve(self, namespace: str, function: str, slots: int, *, exempt: bool = True) -> None:
        """All revisions of this function together have so many slots from here on; 0: each has its own again. `exempt`:
        they need no look at the ceiling."""
        where = (namespace, function)
        self._reserved.pop(where, None)
        if slots:
            self._reserved[where] = slots, exempt
            if (breaker := self._breakers.get(where)) is not None:
                breaker.exempt = exempt
                breaker.resize(slots)
        elif (breaker := self._breakers.pop(where, None)) is not None:
            breaker.exempt = False  # who comes in from here on is counted under the ceiling
            breaker.resize(max(breaker.inside + breaker.waiting, breaker.limit))  # nobody waits for what is over
        self.changed()

    def of(self, revision: Revision) -> Breaker:
        key: Key = revision.key
        slots, exempt = 0, False
        if self._reserved:
            function = (revision.key.namespace, revision.key.function)
            slots, exempt = self._reserved.get(function, (0, False))
            if slots:
                key = function
        breaker = self._breakers.get(key)
        if breaker is None:
            limit = slots or revision.spec.scale.limit * revision.spec.concurrency
            if len(self._breakers) >= self._sweep_at:
                self._sweep()
            breaker = Breaker(limit, key=key, reserved=bool(slots), exempt=exempt)
            self._breakers[key] = breaker
        return breaker

    def _sweep(self) -> None:
        """Half of what is known at least is in use then, or there is little of it."""
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if not breaker.unused}
        self._sweep_at = max(SWEEP_LEAST, 2 * len(self._breakers))
        self.changed()

    def __len__(self) -> int:
        return len(self._breakers)
