"""`PoolLease`: one slot of one instance for one invocation, from its wait to its report.

Given back by its exit, unless the function still works on what a cancelled caller left: then at that end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType

from faas.background import Background
from faas.errors import BadFunctionResponse, FaasError, OutOfMemory, TimedOut, Unavailable
from faas.leases import (
    ColdStart,
    HttpRequest,
    HttpResponse,
    Invocation,
    InvocationResult,
    Report,
    StreamedResult,
    Trigger,
)
from faas.spec import Interface
from worker import http, metering
from worker.exchange import Exchange, ExchangeState, Undelivered
from worker.http import HttpExchange
from worker.http_connection import BrokenConnection
from worker.instance import SETTLE_ITERATIONS, SETTLE_SLICES, Instance
from worker.revision_pool import RevisionPool

log = logging.getLogger("worker.lease")

EXIT_SECONDS = 0.25  # after a connection broke: was it the instance that ended?
# Invocations whose outcome is stored; nobody reads their answer.
STORED = frozenset({Trigger.ASYNC, Trigger.SCHEDULE, Trigger.FOLDER})
OFFERS = 3  # instances that may end before they take one event


class PoolLease:
    """Implements `faas.leases.Lease`; its own context manager, as cheap as can be."""

    __slots__ = (
        "_background",
        "_began",
        "_exchange",
        "_failure",
        "_has_slot",
        "_http",
        "_instance",
        "_invocation",
        "_pool",
        "_timer",
        "cold_start",
        "instance_id",
        "interface",
        "queue_seconds",
        "report",
    )

    def __init__(self, pool: RevisionPool, invocation: Invocation, background: Background) -> None:
        self._pool = pool
        self._invocation = invocation
        self._background = background
        self._instance: Instance
        self._has_slot = False
        self._exchange: Exchange | None = None
        self._http: HttpExchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._failure: BaseException | None = None
        self._began = 0.0
        self.instance_id = ""
        self.interface = Interface.AUTO
        self.cold_start: ColdStart | None = None
        self.queue_seconds = 0.0
        self.report: Report | None = None

    async def __aenter__(self) -> PoolLease:
        instance = self._pool.try_take()
        if instance is None:
            began = time.monotonic()
            instance = await self._pool.take(self._invocation.wait_seconds)
            self.queue_seconds = time.monotonic() - began
        self._holds(instance)
        if instance.stands_still:
            await self._thaw()
        return self

    def _holds(self, instance: Instance) -> None:
        self._instance = instance
        self._has_slot = True
        self.instance_id = instance.id
        self.interface = instance.interface
        self.cold_start = instance.cold_start if instance.invocations == 1 else None

    async def _thaw(self) -> None:
        """Have it go on; one that cannot is of no use, so another is taken."""
        for _ in range(OFFERS):
            try:
                await self._pool.freezer.thaw(self._instance)
                return
            except Unavailable as error:
                log.warning("%s", error, extra={"instance": self._instance.id})
                self._pool.destroy(self._instance)
                self._give_back()
            except BaseException:
                self._give_back()
                raise
            self._holds(await self._pool.take(self._invocation.wait_seconds))
        self._give_back()
        raise Unavailable("one instance after the other could not be thawed")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._finish()
        if self._invocation.trigger in STORED:
            # What is about to be marked as done must have its log, also after a crash in the next moment.
            for turn in range(SETTLE_ITERATIONS + SETTLE_SLICES):
                if turn > SETTLE_ITERATIONS and self._instance.is_settled:
                    break
                await asyncio.sleep(0)
            await self._pool.logs.written()

    async def _finish(self) -> None:
        instance, exchange, call = self._instance, self._exchange, self._http
        if exchange is not None and exchange.state is not ExchangeState.ENDED:
            exchange.on_ended = self._left_event_ended  # whoever asked has gone; the function works on
            return
        if call is not None and not call.ended:
            connection = call.connection
            if instance.slots == 1 and connection is not None and not connection.status:
                self._background.start(self._see_out(call), "request without a caller")
                return
            try:
                await call.end()  # an answer that streams on, or one of several: the function sees its caller gone
            finally:
                self._give_back()
            return
        self._give_back()

    def _give_back(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._pool.release(self._instance)

    # Runtime API functions

    async def invoke(self, event: bytes) -> InvocationResult:
        """Hand `event` over and await the answer."""
        for _ in range(OFFERS):
            instance = self._instance
            if instance.api is None or instance.interface is not Interface.LAMBDA:
                raise FaasError("an http function takes no events by the Runtime API")
            limit = instance.revision.spec.timeout
            self._exchange = exchange = Exchange(self._invocation, event, limit, self._handed, self._event_ended)
            instance.exchange = exchange
            if instance.outcome is None:
                instance.api.offer(exchange)
            else:
                instance.fail_open()
            try:
                return await exchange.outcome()
            except Undelivered:
                self._exchange = None
                await self._take_another()
        raise Unavailable("one instance after the other ended before it took the event")

    async def invoke_streaming(self, event: bytes) -> InvocationResult | StreamedResult:
        """As `invoke`."""
        return await self.invoke(event)

    async def _take_another(self) -> None:
        """The instance ended before it took the event: nothing has happened yet."""
        self._give_back()
        self._holds(await self._pool.take(self._invocation.wait_seconds))
        if self._instance.stands_still:
            await self._thaw()

    def _handed(self, exchange: Exchange) -> None:
        self._instance.begin(self._invocation.request_id)

    def _event_ended(self, exchange: Exchange) -> None:
        """The answer, or what came instead of it; called before whoever waits gets it."""
        instance, error = self._instance, exchange.error
        if not exchange.deliveries and isinstance(error, TimedOut):
            instance.begin(self._invocation.request_id)  # it never came for its event: that is an invocation too
        if exchange.deliveries or isinstance(error, TimedOut):
            error_type = exchange.result.error_type if exchange.result is not None else None
            failed = (error is not None or error_type) and not isinstance(error, TimedOut)
            if failed and instance.outcome is None and instance.had_oom_kill():
                exchange.result, exchange.error = None, instance.out_of_memory()
                error = exchange.error
            self._account(exchange.ended_at - exchange.handed_at, error, error_type)
        if isinstance(error, TimedOut | OutOfMemory):
            self._pool.destroy(instance)

    def _left_event_ended(self, exchange: Exchange) -> None:
        self._event_ended(exchange)
        self._give_back()

    # Http functions

    async def request(self, request: HttpRequest) -> HttpResponse:
        """Send `request`; returns when the answer's head is there."""
        instance = self._instance
        if instance.http is None or instance.interface is not Interface.HTTP:
            raise FaasError("a function of the Runtime API takes no HTTP requests")
        loop = asyncio.get_running_loop()
        self._http = call = HttpExchange(instance.http, self._request_ended)
        self._began = time.perf_counter()
        self._timer = loop.call_later(instance.revision.spec.timeout, self._request_over_time)
        instance.begin(self._invocation.request_id)
        try:
            await instance.http.request(request, call)
        except Exception as error:
            told = await self._translated(error)
            await call.end()
            raise told from None
        answer = http.response(call, self._translated)
        if answer.tunnel is not None:
            self._timer.cancel()  # an upgraded connection is a conversation, not an answer that is late
        return answer

    def _request_over_time(self) -> None:
        call, limit = self._http, self._instance.revision.spec.timeout
        assert call is not None
        self._failure = TimedOut(f"Task timed out after {limit:.2f} seconds")
        call.fail(self._failure)
        self._pool.destroy(self._instance)

    async def _translated(self, error: BaseException) -> BaseException:
        """What a caller is told of `error`; remembered for the report."""
        instance = self._instance
        if self._failure is None:
            if isinstance(error, BrokenConnection):
                error = await self._why_broken(instance, error)
            self._failure = error
        return self._failure

    async def _why_broken(self, instance: Instance, broken: BrokenConnection) -> BaseException:
        if instance.sandbox is not None and instance.outcome is None:
            await asyncio.wait([instance.sandbox.exited], timeout=EXIT_SECONDS)
        if instance.outcome is not None:
            return instance.exit_error()
        if instance.had_oom_kill():
            self._pool.destroy(instance)
            return instance.out_of_memory()
        if broken.no_listener:
            self._pool.destroy(instance)  # it lives, but serves no more
        return BadFunctionResponse(f"the function {broken.reason}")

    def _request_ended(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._account(time.perf_counter() - self._began, self._failure, None)

    async def _see_out(self, call: HttpExchange) -> None:
        """The caller has gone, the function is at work: its one slot is free when it has answered."""
        try:
            assert call.connection is not None
            await call.connection.head()
            while await call.connection.read():
                pass
        except Exception as error:
            await self._translated(error)
        finally:
            try:
                await call.end()
            finally:
                self._give_back()

    # Both

    def _account(self, seconds: float, error: BaseException | None, error_type: str | None) -> None:
        pool, instance = self._pool, self._instance
        self.report = report = instance.end(self._invocation.request_id, seconds, error, error_type)
        if error is None:
            pool.backoff.succeeded()
        pool.recent_peak.add(report.max_memory_bytes, time.monotonic())
        pool.billed.inc(metering.gb_seconds(report))
        pool.reporting.ended(instance.revision.key, report)
