"""The one place where an invocation happens: every trigger comes through here, and here alone it is counted.

    async with activator.lease(…) as lease:      admission; a cold start is waited for in here
        result = await lease.invoke(event)       the function

Two contracts: `invoke_event` hands over one JSON event and returns one answer; `invoke_http` passes an HTTP request
on and streams the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from types import TracebackType

from faas.errors import InitFailed, InstanceExited, ResponseTooLarge, ShuttingDown, Throttled
from faas.leases import HttpRequest, HttpResponse, Invocation, InvocationResult, Lease, Trigger
from faas.spec import Interface
from faas.web import new_request_id
from gateway.activator import Activation, Activator
from gateway.counters import Counters, RouteCounters, Tally
from gateway.discovery import Discovery
from gateway.event_call import EventCall, over
from gateway.router import Route

SYNC_PAYLOAD_BYTES = 6_291_556  # Lambda's 6 MiB + 100 bytes, raw, each way
ASYNC_PAYLOAD_BYTES = 1_048_576

LOOK_SECONDS = 0.005  # whether all have ended

_now = time.perf_counter


class Invoker:
    """Runs invocations. `close` ends them."""

    def __init__(self, activator: Activator, counters: Counters, discovery: Discovery) -> None:
        self.activator = activator
        self._counters = counters
        self._discovery = discovery
        self._events: set[asyncio.Task[InvocationResult]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Timeout] = set()
        self.http_calls = 0  # that run: whoever begins one counts it, and counts it off at its end
        self.draining = False

    async def known(self, route: Route, trigger: Trigger) -> Route:
        """`route` with its interface known, LAMBDA or HTTP. Raises InitFailed, Throttled (counted), ImageUnusable."""
        if route.revision.interface is not Interface.AUTO:
            return route
        try:
            return await self._discovery.known(route)
        except (InitFailed, Throttled) as error:
            self._counters.of(route, trigger).not_started(error)
            raise

    async def invoke_event(
        self,
        route: Route,
        event: bytes,
        *,
        trigger: Trigger,
        request_id: str | None = None,
        trace_id: str = "",
        client_context: str = "",
        wait_seconds: float | None = None,
    ) -> InvocationResult:
        """Give `event` (JSON) to the function and return its answer; an http function gets it as a POST to `/`.

        `wait_seconds`: for a slot, where it is not the function's whole `queue_timeout`.

        Raises Throttled, ShuttingDown, FunctionError and its kin. Cancelled while it waits for a slot, the
        invocation leaves the queue; once the function runs it runs to its end, as on Lambda, and is counted.
        """
        if self.draining:
            raise ShuttingDown
        route = await self.known(route, trigger)
        wait = route.revision.spec.queue_timeout if wait_seconds is None else wait_seconds
        invocation = Invocation(request_id or new_request_id(), trigger, wait, trace_id, client_context)
        flight = _Flight()
        run = self._post if route.revision.interface is Interface.HTTP else self._event
        task = asyncio.get_running_loop().create_task(run(route, event, invocation, flight))
        self._events.add(task)
        task.add_done_callback(self._event_done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`: whoever waits for it hears why
                raise ShuttingDown from None
            if not flight.running:
                task.cancel()
            raise

    def invoke_streaming(
        self,
        route: Route,
        event: bytes,
        *,
        trigger: Trigger,
        request_id: str | None = None,
        trace_id: str = "",
        wait_seconds: float | None = None,
    ) -> EventCall:
        """`async with invoker.invoke_streaming(…) as answer:` as `invoke_event`, for a caller who can pass pieces on.

        The answer is a StreamedResult where the function streams; reading its body may raise what entering raises.
        `route.revision.interface` must be LAMBDA (see `known`).
        """
        if self.draining:
            raise ShuttingDown
        wait = route.revision.spec.queue_timeout if wait_seconds is None else wait_seconds
        invocation = Invocation(request_id or new_request_id(), trigger, wait, trace_id)
        return EventCall(self, route, event, invocation, SYNC_PAYLOAD_BYTES)

    def invoke_http(
        self,
        route: Route,
        request: HttpRequest,
        *,
        trigger: Trigger,
        request_id: str | None = None,
        wait_seconds: float | None = None,
    ) -> HttpCall:
        """`async with invoker.invoke_http(…) as response:` the answer of an http function, its body still to stream.

        Entering raises Throttled, ShuttingDown, FunctionError; so may reading the body. `route.revision.interface`
        must be HTTP (see `known`).
        """
        if self.draining:
            raise ShuttingDown
        wait = route.revision.spec.queue_timeout if wait_seconds is None else wait_seconds
        invocation = Invocation(request_id or new_request_id(), trigger, wait)
        return HttpCall(self, route, request, invocation)

    @property
    def running(self) -> int:
        """Invocations in flight, waiting ones included."""
        return len(self._events) + self.http_calls

    async def close(self, grace_seconds: float) -> None:
        """Take no more; wait for what runs, `grace_seconds` at most, then end it: who waits hears ShuttingDown."""
        self.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                while self.running:  # noqa: ASYNC110 - looked at here, so that an invocation's end costs a subtraction
                    await asyncio.sleep(LOOK_SECONDS)
        while self._waiting:
            self._waiting.pop().reschedule(0.0)
        tasks = [*self._events, *self._streams]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._discovery.close()

    def tallies(self) -> dict[str, Tally]:
        """What was counted of each function, by its label, since its last change."""
        return self._counters.tallies()

    def counters(self, route: Route, trigger: Trigger) -> RouteCounters:
        return self._counters.of(route, trigger)

    def lease(self, route: Route, invocation: Invocation) -> Activation:
        return self.activator.lease(route.revision, invocation)

    async def _event(self, route: Route, event: bytes, invocation: Invocation, flight: _Flight) -> InvocationResult:
        counters = self._counters.of(route, invocation.trigger)
        activation = self.activator.lease(route.revision, invocation)
        began = _now()
        try:
            lease = await activation.__aenter__()
        except BaseException as error:
            counters.not_started(error)
            raise
        flight.running = True
        admitted = _now()
        failure: BaseException | None = None
        result: InvocationResult | None = None
        duration = 0.0
        counters.running += 1
        try:
            try:
                result = await lease.invoke(event)
            except BaseException as error:
                failure = error
                raise
            finally:
                duration = _now() - admitted
                await activation.__aexit__(type(failure) if failure else None, failure, None)
            if len(result.payload) > SYNC_PAYLOAD_BYTES:
                failure = too_large(len(result.payload))
                raise failure
            return result
        finally:
            if lease.report is not None:
                duration = lease.report.duration_seconds
            handled = result is not None and result.error_type is not None
            counters.ended(failure, handled, admitted - began, duration, _now() - began)

    async def _post(self, route: Route, event: bytes, invocation: Invocation, flight: _Flight) -> InvocationResult:
        headers = (("Host", route.label), ("Content-Type", "application/json"), ("X-Request-Id", invocation.request_id))
        request = HttpRequest("POST", "/", headers, event, len(event))
        async with HttpCall(self, route, request, invocation) as response:
            flight.running = True
            body = bytearray()
            async for chunk in response.body:
                body += chunk
                if len(body) > SYNC_PAYLOAD_BYTES:
                    raise too_large(len(body))
            types = [value for name, value in response.headers if name.lower() == "content-type"]
            failed = f"Http.{response.status}" if response.status >= 500 else None
            return InvocationResult(bytes(body), types[0] if types else "application/octet-stream", failed)

    def _event_done(self, task: asyncio.Task[InvocationResult]) -> None:
        self._events.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even where the caller has gone

    def keep(self, task: asyncio.Task[None]) -> None:
        """Have `close` wait for `task`, an invocation that counts among `http_calls`, and cancel it in the end."""
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    @contextlib.asynccontextmanager
    async def until_close(self) -> AsyncIterator[None]:
        """Around what a caller waits for without a task of ours: `close` ends it. Raises ShuttingDown then."""
        try:
            async with asyncio.timeout(None) as timeout:
                self._waiting.add(timeout)
                try:
                    yield
                finally:
                    self._waiting.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise ShuttingDown from None

    def drain(self) -> None:
        """Take no more."""
        self.draining = True
        self.activator.close()


class _Flight:
    """Whether an invocation has reached its function."""

    __slots__ = ("running",)

    def __init__(self) -> None:
        self.running = False


class HttpCall:
    """An http function's invocation, from admission to the last byte of its answer."""

    def __init__(self, invoker: Invoker, route: Route, request: HttpRequest, invocation: Invocation) -> None:
        self._invoker = invoker
        self._request = request
        self._counters = invoker.counters(route, invocation.trigger)
        self._activation = invoker.lease(route, invocation)
        self._began = self._admitted = 0.0
        self._lease: Lease
        self._response: HttpResponse | None = None

    async def __aenter__(self) -> HttpResponse:
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
        try:
            async with self._invoker.until_close():
                self._response = await self._lease.request(self._request)
        except BaseException as error:
            await self._finish(error)
            raise
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._finish(error)

    async def _finish(self, error: BaseException | None) -> None:
        duration = _now() - self._admitted
        response = self._response
        try:
            if response is not None:
                await closed(response.body)
        finally:
            try:
                await self._activation.__aexit__(type(error) if error else None, error, None)
            finally:
                self._invoker.http_calls -= 1
                if self._lease.report is not None:
                    duration = self._lease.report.duration_seconds
                handled = response is not None and response.status >= 500
                queue = self._admitted - self._began
                self._counters.ended(error, handled, queue, duration, _now() - self._began)


async def closed(body: AsyncIterator[bytes]) -> None:
    """End a body that may not have been read to its end."""
    close = getattr(body, "aclose", None)
    if close is not None:
        with contextlib.suppress(InstanceExited):  # it had ended already: whoever read it was told
            await close()


def too_large(size: int) -> ResponseTooLarge:
    return over(size, SYNC_PAYLOAD_BYTES)
