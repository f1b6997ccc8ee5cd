"""`Exchange`: one event on its way through an instance.

The event stays leased to the server until it is answered: a poll that took it and died did not receive it.

    OFFERED ──deliver──▶ HANDED ──answer, time limit, end of the instance──▶ ENDED
       └──────────────────────── time limit, end of the instance ──────────────▲
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable

from faas.errors import FaasError, TimedOut
from faas.leases import Invocation, InvocationResult

DELIVERIES = 3  # a runtime that takes the same event again and again without answering is left to its time limit


class ExchangeState(enum.Enum):
    OFFERED = "offered"
    HANDED = "handed"
    ENDED = "ended"


class Undelivered(FaasError):
    """The instance ended before it took the event: another one may have it."""


class Exchange:
    """`on_handed` is called when the event is first given out, `on_ended` once when it is over.

    `limit_seconds` runs from the handing out; an event that nobody takes waits as long.
    """

    __slots__ = (
        "_limit",
        "_loop",
        "_timer",
        "_waiter",
        "deliveries",
        "ended_at",
        "error",
        "event",
        "handed_at",
        "invocation",
        "on_ended",
        "on_handed",
        "result",
        "state",
    )

    def __init__(
        self,
        invocation: Invocation,
        event: bytes,
        limit_seconds: float,
        on_handed: Callable[[Exchange], None],
        on_ended: Callable[[Exchange], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.invocation = invocation
        self.event = event
        self.on_handed = on_handed
        self.on_ended = on_ended
        self.state = ExchangeState.OFFERED
        self.deliveries = 0
        self.handed_at = self.ended_at = 0.0  # the loop's clock
        self.result: InvocationResult | None = None
        self.error: BaseException | None = None

    def wait_for_poll(self) -> None:
        """Nobody polls yet: start the clock."""
        self._timer = self._loop.call_later(self._limit, self._over_time)

    def handed(self) -> None:
        """The event was written to a poll."""
        self.deliveries += 1
        if self.state is not ExchangeState.OFFERED:
            return
        self.state = ExchangeState.HANDED
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._limit, self._over_time)
        self.handed_at = time.perf_counter()
        self.on_handed(self)

    def answer(self, result: InvocationResult) -> None:
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        self._end(None, error)

    def _over_time(self) -> None:
        self._end(None, TimedOut(f"Task timed out after {self._limit:.2f} seconds"))

    def _end(self, result: InvocationResult | None, error: BaseException | None) -> None:
        if self.state is ExchangeState.ENDED:
            return
        self.ended_at = time.perf_counter()
        if self.state is ExchangeState.OFFERED:
            self.handed_at = self.ended_at
        self.state = ExchangeState.ENDED
        self.result, self.error = result, error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.on_ended(self)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def outcome(self) -> InvocationResult:
        """The answer. Raises what it failed with. Cancelling the wait does not end the exchange."""
        if self.state is not ExchangeState.ENDED:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result
