"""`Exchange`: one event on its way through an instance.

The event stays leased to the server until it is answered: a poll that took it and died did not receive it.

    OFFERED ──deliver──▶ HANDED ──answer, time limit, end of the instance──▶ ENDED
       └──────────────────────── time limit, end of the instance ──────────────▲
"""

from __future__ import annotations

import asyncio
import enum
import json
import time
from collections.abc import Callable

from faas.errors import BadFunctionResponse, FaasError, FunctionError, TimedOut
from faas.leases import Invocation, InvocationResult, StreamedResult
from worker.answer_stream import AnswerStream, Source
from worker.deadlines import Deadlines

DELIVERIES = 3  # a runtime that takes the same event again and again without answering is left to its time limit
EXIT_SECONDS = 0.25  # after a connection broke: was it the instance that ended?
TRUNCATED = "Runtime.TruncatedResponse"  # Lambda's name for an answer that broke off
MESSAGE_CHARACTERS = 4096  # of an error that a function reports


class ExchangeState(enum.Enum):
    OFFERED = "offered"
    HANDED = "handed"
    ENDED = "ended"


OFFERED, HANDED, ENDED = ExchangeState  # looking one up in its enum costs 0.2 µs


class Undelivered(FaasError):
    """The instance ended before it took the event: another one may have it."""


class Exchange:
    """`on_handed` is called when the event is first given out, `on_ended` once when it is over.

    The time limit, which `deadlines` keeps, runs from the handing out; an event that nobody takes waits as long.
    """

    # Defaults of the class: one is made for each event, and most of them stay as they are.
    state = OFFERED
    deliveries = 0
    handed_at = ended_at = 0.0  # `time.monotonic`
    result: InvocationResult | None = None
    error: BaseException | None = None
    stream: AnswerStream | None = None  # of an answer that comes piece by piece
    _left = False
    _waiter: asyncio.Future[None] | None = None

    def __init__(
        self,
        invocation: Invocation,
        event: bytes,
        deadlines: Deadlines,
        on_handed: Callable[[Exchange], None],
        on_ended: Callable[[Exchange], None],
        *,
        takes_pieces: bool = False,
        on_begun: Callable[[StreamedResult], None] | None = None,
    ) -> None:
        """`on_begun` is called with an answer that comes piece by piece, where that is taken."""
        self._takes_pieces = takes_pieces
        self._on_begun = on_begun
        self._deadlines = deadlines
        self.invocation = invocation
        self.event = event
        self.on_handed = on_handed
        self.on_ended = on_ended

    def wait_for_poll(self) -> None:
        """Nobody polls yet: start the clock."""
        self._deadlines.begin(self, time.monotonic())

    def handed(self) -> None:
        """The event was written to a poll."""
        self.deliveries += 1
        if self.state is not OFFERED:
            return
        self.state = HANDED
        self.handed_at = time.monotonic()
        self._deadlines.add(self, self.handed_at)
        self.on_handed(self)

    def answer(self, result: InvocationResult) -> None:
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        self._end(None, error)

    def break_off(self) -> None:
        """The connection that its answer came by has ended. Where it was the instance that ended, that is known in a
        moment, and said instead."""
        self.deliveries = DELIVERIES  # nobody answers it a second time
        error = BadFunctionResponse("the streamed response broke off", error_type=TRUNCATED)
        asyncio.get_running_loop().call_later(EXIT_SECONDS, self.fail, error)

    def over_time(self, error: TimedOut) -> None:
        self._end(None, error)

    def _end(self, result: InvocationResult | None, error: BaseException | None) -> None:
        if self.state is ENDED:
            return
        self.ended_at = time.monotonic()
        if self.state is OFFERED:
            self.handed_at = self.ended_at
        self.state = ENDED
        self.result = result
        if error is not None:
            self.error = error
        self._deadlines.discard(self)
        self.on_ended(self)
        if self.stream is not None:
            self.stream.end(self.error or (reported(self.result) if self.result is not None else None))
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # An answer that comes piece by piece

    def stream_from(self, source: Source, content_type: str) -> AnswerStream | None:
        """Its pieces come from `source`; None where whoever asked takes it whole."""
        if not self._takes_pieces or self.stream is not None:
            return None
        self.stream = stream = AnswerStream(source, content_type, self._begins)
        if stream.result is not None:
            self._begins()  # within its making nobody could see it
        if self._left:
            self.stream.drop()
        return self.stream

    def _begins(self) -> None:
        if self.stream is None or self.stream.result is None:
            return
        on_begun, self._on_begun = self._on_begun, None
        if on_begun is not None:
            on_begun(self.stream.result)
        self._wake()

    def end_stream(self) -> None:
        """The whole answer has come."""
        if self.stream is not None and self.stream.result is None and not self._left:
            self.fail(BadFunctionResponse("the response ended within its prelude", error_type=TRUNCATED))
        else:
            self.answer(InvocationResult(b""))

    def leave(self, on_ended: Callable[[Exchange], None]) -> None:
        """Whoever asked has gone; the function works on, and `on_ended` is called at its end instead."""
        self._left = True
        self._on_begun = None
        self.on_ended = on_ended
        if self.stream is not None:
            self.stream.drop()

    # For whoever asked

    async def begun(self) -> InvocationResult | StreamedResult:
        """As `outcome`, but for an answer that streams: there it is over as soon as that has begun."""
        while self.state is not ENDED:
            if self.stream is not None and self.stream.result is not None:
                return self.stream.result
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.stream is not None and self.stream.result is not None:
            return self.stream.result
        return await self.outcome()

    async def outcome(self) -> InvocationResult:
        """The answer. Raises what it failed with. Cancelling the wait does not end the exchange."""
        while self.state is not ENDED:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


def reported(result: InvocationResult) -> FunctionError | None:
    """What reading a stream raises where the function named an error at its end."""
    if result.error_type is None:
        return None
    message = json.loads(result.payload).get("errorMessage", "")
    return FunctionError(str(message)[:MESSAGE_CHARACTERS] or "the function failed", error_type=result.error_type)
