"""`PoolLease`: one slot of one instance for one invocation, from its wait to its report.

Given back by its exit, unless the function still works on what a cancelled caller left: then at that end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from faas.background import Background
from faas.errors import FaasError, ImageUnusable, InitFailed, RequestTimeout, TimedOut, Unavailable
from faas.leases import ColdStart, HttpRequest, HttpResponse, Invocation, InvocationResult, StreamedResult, Trigger
from faas.protocol import LogRecord
from worker import http
from worker.exchange import ENDED, Exchange, Undelivered
from worker.http import HttpExchange
from worker.instance import SETTLE_ITERATIONS, Instance
from worker.revision_pool import RevisionPool
from worker.settling import SLICES
from worker.slot import OFFERS, Slot

# Invocations whose outcome is stored; nobody reads their answer.
STORED = frozenset({Trigger.ASYNC, Trigger.SCHEDULE, Trigger.FOLDER})


class PoolLease(Slot):
    """Implements `faas.leases.Lease`; its own context manager, as cheap as can be."""

    def __init__(self, pool: RevisionPool, invocation: Invocation, background: Background) -> None:
        super().__init__(pool, invocation.request_id)
        self._invocation = invocation
        self._background = background
        self._exchange: Exchange | None = None
        self._http: HttpExchange | None = None
        self._began = 0.0
        self.cold_start: ColdStart | None = None
        self.queue_seconds = 0.0

    async def __aenter__(self) -> PoolLease:
        instance = self._pool.try_take()
        if instance is None:
            began = time.monotonic()
            try:
                instance = await self._pool.take(self._invocation.wait_seconds)
            except (InitFailed, ImageUnusable) as error:
                self._not_started(error)
                raise
            self.queue_seconds = time.monotonic() - began
        self._holds(instance)
        if instance.stands_still:
            await self._thaw(self._invocation.wait_seconds)
        return self

    def _not_started(self, error: FaasError) -> None:
        """Nothing else of this invocation is in its function's log, where its id is looked for."""
        key, request_id = self._pool.revision.key, self._invocation.request_id
        line = f"RequestId: {request_id} Error: {error.message}"
        record = LogRecord(time.time(), line, "system", key.number, "", request_id)
        self._pool.parts.logs.of(key.namespace, key.function).append(record)

    def _holds(self, instance: Instance) -> None:
        super()._holds(instance)
        self.cold_start = instance.cold_start if instance.invocations == 1 else None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._finish()
        if self._invocation.trigger in STORED:
            # What is about to be marked as done must have its log, also after a crash in the next moment.
            for _ in range(SETTLE_ITERATIONS):
                await asyncio.sleep(0)
            for _ in range(SLICES):
                if self._instance.settle_slice() is None:
                    break
                await asyncio.sleep(0)
            self._instance.settle()
            await self._pool.parts.logs.written()

    async def _finish(self) -> None:
        instance, exchange, call = self._instance, self._exchange, self._http
        if exchange is not None and exchange.state is not ENDED:
            exchange.leave(self._left_event_ended)
            return
        if call is not None and not call.ended:
            reader = call.reader
            if instance.slots == 1 and reader is not None and not reader.status:
                self._background.start(self._see_out(call), "request without a caller")
                return
            try:
                await call.end()  # an answer that streams on, or one of several: the function sees its caller gone
            finally:
                self._give_back()
            return
        self._give_back()

    # Runtime API functions

    async def invoke(self, event: bytes) -> InvocationResult:
        """Hand `event` over and await the answer."""
        exchange = await self._delivered(event, Exchange.outcome, takes_pieces=False)
        return await exchange.outcome()

    async def invoke_streaming(self, event: bytes) -> InvocationResult | StreamedResult:
        """As `invoke`; an answer that streams is returned when it has begun."""
        exchange = await self._delivered(event, Exchange.begun, takes_pieces=True)
        return await exchange.begun()

    async def _delivered(
        self, event: bytes, awaited: Callable[[Exchange], Awaitable[object]], *, takes_pieces: bool
    ) -> Exchange:
        """The exchange by which an instance took `event`, once what is `awaited` of it is there."""
        for _ in range(OFFERS):
            self._exchange = exchange = Exchange(
                self._invocation,
                event,
                self._pool.deadlines,
                self._handed,
                self._event_ended,
                takes_pieces=takes_pieces,
            )
            self._offer(exchange)
            try:
                await awaited(exchange)
                return exchange
            except Undelivered:
                self._exchange = None
                await self._take_another()
        raise Unavailable("one instance after the other ended before it took the event")

    async def _take_another(self) -> None:
        """The instance ended before it took the event: nothing has happened yet."""
        self._give_back()
        await self._take(self._invocation.wait_seconds)

    def _left_event_ended(self, exchange: Exchange) -> None:
        self._event_ended(exchange)
        self._give_back()

    # Http functions

    async def request(self, request: HttpRequest) -> HttpResponse:
        """Send `request`; returns when the answer's head is there."""
        client = self._http_client()
        self._http = call = HttpExchange(client, self._request_ended)
        self._began = time.monotonic()
        self._pool.deadlines.add(self, self._began)
        self._instance.begin(self._request_id, self._began)
        try:
            await client.request(request, call)
        except Exception as error:
            told = await self._translated(error)
            await call.end()
            raise told from None
        answer = http.response(call, self._translated)
        if answer.tunnel is not None:
            self._pool.deadlines.discard(self)  # an upgraded connection is a conversation, not an answer that is late
        return answer

    def over_time(self, error: TimedOut) -> None:
        """Of an HTTP request."""
        assert self._http is not None
        if self._http.awaits_caller:  # whose fault it is: no instance goes because a client sends a byte now and then
            self._http.fail(RequestTimeout("the body did not come within the function's time limit"))
            return
        self._failure = error
        self._http.fail(error)
        self._pool.destroy(self._instance)

    def _request_ended(self) -> None:
        self._pool.deadlines.discard(self)
        self._account(time.monotonic() - self._began, self._failure, None)

    async def _see_out(self, call: HttpExchange) -> None:
        """The caller has gone, the function is at work: its one slot is free when it has answered."""
        try:
            assert call.reader is not None
            await call.reader.wait_for_head()
            while await call.reader.read():
                pass
        except Exception as error:
            await self._translated(error)
        finally:
            try:
                await call.end()
            finally:
                self._give_back()
