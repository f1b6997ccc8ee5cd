"""`EventCall`: a Lambda-style function's invocation whose answer may come piece by piece."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING

from faas.errors import ResponseTooLarge, ShuttingDown
from faas.leases import Invocation, InvocationResult, Lease, StreamedResult
from gateway.router import Route

if TYPE_CHECKING:
    from gateway.invoke import Invoker

_now = time.perf_counter


class EventCall:
    """From admission to the last byte: `async with call as answer`. Counted as every invocation is.

    Cancelled while it waits for a slot, it leaves the queue. Once the function runs it runs to its end, as on Lambda,
    whoever has gone: what it answers then is read and thrown away. A client that reads slowly holds it back: two
    pieces at most lie here.
    """

    def __init__(self, invoker: Invoker, route: Route, event: bytes, invocation: Invocation, most: int) -> None:
        """`most`: bytes of an answer that does not come in pieces."""
        self._invoker = invoker
        self._event = event
        self._most = most
        self._counters = invoker.counters(route, invocation.trigger)
        self._activation = invoker.lease(route, invocation)
        self._began = self._admitted = 0.0
        self._lease: Lease
        loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[InvocationResult | StreamedResult] = loop.create_future()
        self._pieces: asyncio.Queue[bytes | None] | None = None  # of a streamed answer
        self._taken = asyncio.Event()  # the streamed answer's head is good, or nobody wants it
        self._failure: BaseException | None = None
        self._refused: BaseException | None = None  # why the answer could not be passed on, where that is its fault
        self._left = False
        self._handled = False

    async def __aenter__(self) -> InvocationResult | StreamedResult:
        self._began = _now()
        self._invoker.http_calls += 1
        try:
            async with self._invoker.until_close():
                self._lease = await self._activation.__aenter__()
        except BaseException as error:
            self._invoker.http_calls -= 1
            self._counters.not_started(error)
            raise
        self._admitted = _now()
        self._counters.running += 1
        self._invoker.keep(asyncio.get_running_loop().create_task(self._run()))
        try:
            return await self._answer
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, ConnectionError):
            self._refused = error
        self._leave()

    def _leave(self) -> None:
        self._left = True
        self._taken.set()
        if self._pieces is not None and not self._pieces.empty():
            self._pieces.get_nowait()  # whoever waits to put the next one in goes on

    async def _run(self) -> None:
        result: InvocationResult | None = None
        try:
            result = await self._streamed()
        except BaseException as error:
            self._failure = error
        await self._finish()
        if self._answer.done():
            if self._pieces is not None and not self._left:
                await self._pieces.put(None)
        elif self._failure is None:
            assert result is not None
            self._answer.set_result(result)
        elif isinstance(self._failure, Exception):
            self._answer.set_exception(self._failure)
        else:
            self._answer.set_exception(ShuttingDown())

    async def _streamed(self) -> InvocationResult | None:
        """A whole answer; None when all pieces of one have come."""
        event, self._event = self._event, b""
        answer = await self._lease.invoke_streaming(event)
        del event
        if isinstance(answer, InvocationResult):
            if len(answer.payload) > self._most:
                raise over(len(answer.payload), self._most)
            self._handled = answer.error_type is not None
            return answer
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._pieces = pieces
        if not self._answer.done():
            self._answer.set_result(StreamedResult(self._body(pieces), answer.prelude, answer.content_type))
        await self._taken.wait()
        async for piece in answer.body:
            if piece and not self._left:
                await pieces.put(piece)
        return None

    async def _body(self, pieces: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        self._taken.set()
        while (piece := await pieces.get()) is not None:
            yield piece
        if isinstance(self._failure, Exception):
            raise self._failure
        if self._failure is not None:
            raise ShuttingDown

    async def _finish(self) -> None:
        """Give the slot back and count."""
        error, duration = self._failure, _now() - self._admitted
        try:
            await self._activation.__aexit__(type(error) if error else None, error, None)
        except Exception as failed:
            self._failure = self._failure or failed
        finally:
            self._invoker.http_calls -= 1
            if self._lease.report is not None:
                duration = self._lease.report.duration_seconds
            queue = self._admitted - self._began
            failure = self._failure or self._refused
            self._counters.ended(failure, self._handled, queue, duration, _now() - self._began)


def over(size: int, most: int) -> ResponseTooLarge:
    return ResponseTooLarge(
        f"Response payload size ({size} bytes) exceeded maximum allowed payload size ({most} bytes)."
    )
