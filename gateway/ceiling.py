"""The ceiling over all functions together: how many invocations may be inside at once on this server.

Functions with a reservation do not pass here: their whole reservation counts, used or not, and no more of them can
come. All others share the rest. Where that is taken they wait, and what becomes free goes round: to each function in
turn, within a function first come first served, so that no function's burst keeps another out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable

from faas.errors import SpecError, Throttled

MAX_CONCURRENCY = 1000  # as on Lambda
UNRESERVED = 100  # of the ceiling are never reserved, as on Lambda; of a small one a tenth


class Ceiling:
    """`limit` invocations. Entering is a comparison where there is room."""

    __slots__ = ("_reserved", "inside", "limit", "open_to_all", "waiters")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self.open_to_all = limit  # what is not reserved
        self._reserved: dict[Hashable, int] = {}
        self.waiters: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        return sum(map(len, self.waiters.values()))

    def reserve(self, function: Hashable, slots: int) -> None:
        """Count `slots` for this function from here on; 0: none. Raises SpecError where too little would be left."""
        others = sum(self._reserved.values()) - self._reserved.get(function, 0)
        rest = min(UNRESERVED, -(-self.limit // 10))
        if slots and others + slots > self.limit - rest:
            raise SpecError(
                f"scale.reserved: {slots} invocations at once cannot be reserved: of {self.limit} (max_concurrency) "
                f"others have reserved {others}, and {rest} stay for all",
                key="scale.reserved",
                hint="lower scale.reserved, or raise the server's max_concurrency",
            )
        self._reserved.pop(function, None)
        if slots:
            self._reserved[function] = slots
        self.open_to_all = self.limit - others - slots
        self._admit()

    def try_enter(self) -> bool:
        """Come in where there is room now; nobody overtakes who waits."""
        if self.inside < self.open_to_all and not self.waiters:
            self.inside += 1
            return True
        return False

    async def enter(self, function: Hashable, wait_seconds: float) -> None:
        """Wait for room, in the function's turn. Raises Throttled when the wait is over."""
        if self.try_enter():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.setdefault(function, deque()).append(waiter)
        try:
            async with asyncio.timeout(max(0.0, wait_seconds)):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self.leave()  # it came in the same turn as the end of the wait: hand it on
            else:
                self._forget(function, waiter)
            if isinstance(error, TimeoutError):
                raise Throttled(
                    f"{self.open_to_all} invocations of all functions run already, and none ended within "
                    f"{max(0.0, wait_seconds):g} s",
                    hint="try again, or raise the server's max_concurrency",
                ) from None
            raise

    def leave(self) -> None:
        self.inside -= 1
        if self.waiters:
            self._admit()

    def _admit(self) -> None:
        while self.waiters and self.inside < self.open_to_all:
            function, queue = next(iter(self.waiters.items()))
            waiter = queue.popleft()
            if queue:
                self.waiters.move_to_end(function)
            else:
                del self.waiters[function]
            if not waiter.done():  # done here means cancelled: whoever waited is on the way out
                waiter.set_result(None)
                self.inside += 1

    def _forget(self, function: Hashable, waiter: asyncio.Future[None]) -> None:
        queue = self.waiters.get(function)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self.waiters[function]
