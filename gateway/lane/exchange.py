"""One request and its answer, from admission to the last byte: by callbacks where a slot is free or only a turn has to
be waited for, by a task through the invoker where an instance has.

What is counted, and when, is as in `gateway.invoke`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from time import monotonic, time

from faas.errors import BadFunctionResponse, FaasError, ShuttingDown, Throttled
from faas.leases import Claim, InvocationResult, KnownHead, StreamedResult, Trigger
from gateway.edge.witness import GONE
from gateway.event import streamed_head
from gateway.flight import CURRENT, Flight
from gateway.invoke import SYNC_PAYLOAD_BYTES, closed, too_large
from gateway.lane.answer import Answer
from gateway.lane.shape import Shape
from gateway.place import Guest, Turn


class Exchange(Answer, Guest):
    """`start`ed once; `gone` once its client is not there any more, unless it has answered."""

    _flight: Flight | None = None  # where it took the way through the invoker
    _claim: Claim | None = None
    _turn: Turn | None = None
    _task: asyncio.Task[None] | None = None
    _began = _admitted = 0.0
    _trace_id = ""  # of an event, where its caller sent none

    def start(self) -> None:
        self._began = self._admitted = began = monotonic()
        plan = self.plan
        claim = self.enter(plan.gate, self.request_id, began)
        if claim is None:
            self._line_up()
            return
        self.kit.invoker.http_calls += 1
        self._claim = claim
        plan.counters.running += 1
        self._go(claim)

    def pause(self) -> None:
        """The client does not read."""
        if self._claim is not None:
            self._claim.pause()

    def resume(self) -> None:
        if self._claim is not None:
            self._claim.resume()

    def gone(self) -> None:
        if self._turn is not None:
            self._stop_waiting(self._turn)
        elif self._task is not None:
            self._task.cancel()
        elif self._claim is not None:
            self._client_left()

    def crash(self, error: Exception) -> None:
        """Our own fault: nothing may stay taken."""
        if self._claim is not None:
            self._claim.abandon()
            self._over(error, False)
        if self._client.is_there(self):
            self.fail(_ours(error, self.request_id))

    def seen(self, address: str, *, gone: bool = False) -> None:
        """Tell the witness, once it is over; `gone`: its client was, before."""
        witness, plan, shape = self.kit.witness, self.plan, self.shape
        assert witness is not None
        status = self.error_status or (shape.status if shape is not None else GONE)
        fields = dict(plan.fields)
        witness.saw(
            method=plan.method,
            target=plan.written,
            status=GONE if gone and not self.has_begun else status,
            request_id=self.request_id,
            seconds=monotonic() - self._began,
            route=plan.route,
            address=plan.told.known_address or address,
            agent=fields.get("user-agent", ""),
            referer=fields.get("referer", ""),
            trace=plan.trace or self._trace_id,
            bytes_in=plan.length,
            bytes_out=0 if gone and not self.has_begun else self.size,
            cold=self._flight is not None and self._flight.cold is not None,
            version="1.1" if plan.version_1_1 else "1.0",
        )

    # The way in

    def _line_up(self) -> None:
        plan = self.plan
        if self.kit.invoker.draining:
            self.fail(ShuttingDown())
            return
        try:
            turn = self.line_up(plan.gate, self)
        except Throttled as error:
            self._refused(error)
            return
        if turn is None:
            self._task = self.kit.run(self._slowly(plan.wait_seconds))
            return
        self._turn = turn
        self.kit.invoker.http_calls += 1

    def on_turn(self) -> None:
        turn, self._turn = self._turn, None
        assert turn is not None
        try:
            claim, now = self.take_turn(turn, self.request_id), monotonic()
            if claim is not None:
                self._admit(claim, now)
                return
        except Exception as error:
            self.crash(error)
            return
        self.kit.invoker.http_calls -= 1
        self._task = self.kit.run(self._slowly(max(0.0, self.plan.wait_seconds - (now - self._began))))

    def on_late(self, turn: Turn) -> None:
        self._stop_waiting(turn)
        self._refused(turn.too_late())

    def _stop_waiting(self, turn: Turn) -> None:
        self._turn = None
        turn.give_up()
        self.kit.invoker.http_calls -= 1

    def _refused(self, error: Throttled) -> None:
        self.plan.counters.not_started(error)
        self.fail(error)

    def _admit(self, claim: Claim, admitted: float) -> None:
        self._claim = claim
        self._admitted = admitted
        self.plan.counters.running += 1
        self._go(claim)

    @abstractmethod
    def _go(self, claim: Claim) -> None:
        """Send the request to the function."""

    @abstractmethod
    def _client_left(self) -> None:
        """While the function runs."""

    # The way through the invoker

    async def _slowly(self, wait_seconds: float) -> None:
        self._flight = Flight(self.plan.route)
        CURRENT.set(self._flight)  # of this task
        try:
            await self._invoke(wait_seconds)
        except FaasError as error:
            self.fail(error)
        except Exception as failure:
            self.fail(_ours(failure, self.request_id))

    @abstractmethod
    async def _invoke(self, wait_seconds: float) -> None:
        """Through a lease: the invoker counts."""

    # The way out

    def _over(self, error: BaseException | None, handled: bool, seconds: float | None = None) -> None:
        """Once, after the claim's end: give the place back, and count. `seconds`: in the function, where that is not in
        the claim's report."""
        claim, ended = self._claim, monotonic()
        assert claim is not None
        self._claim = None
        self.leave(ended)
        began, admitted = self._began, self._admitted
        if seconds is None:
            seconds = claim.report.duration_seconds if claim.report is not None else ended - admitted
        self.plan.counters.ended(error, handled, admitted - began, seconds, ended - began)
        self.kit.invoker.http_calls -= 1


    def _over_well(self, seconds: float) -> None:
        """`_over` of what nothing is to be said of, as nearly always."""
        began, ended = self._began, monotonic()
        self._claim = None
        self.leave(ended)
        self.plan.counters.ended_well(self._admitted - began, seconds, ended - began)
        self.kit.invoker.http_calls -= 1


class HttpExchange(Exchange):
    """An http function's. `faas.leases.Answering` of its claim."""

    def start(self) -> None:
        """As any, in one piece: two calls less."""
        self._began = self._admitted = began = monotonic()
        plan = self.plan
        if (claim := self.enter(plan.gate, self.request_id, began)) is None:
            self._line_up()
            return
        self.kit.invoker.http_calls += 1
        self._claim = claim
        plan.counters.running += 1
        claim.send(plan.method, self._client.template(plan).filled((self.id,)) + self.body, self)

    def _go(self, claim: Claim) -> None:
        plan = self.plan
        claim.send(plan.method, self._client.template(plan).filled((self.id,)) + self.body, self)

    def whole(self, head: KnownHead, body: bytes, seconds: float) -> None:
        """The usual answer."""
        shape: Shape | None = head.made
        client = self._client
        if shape is None or not (shape.is_usual and self.plan.is_usual and client.is_usual):
            self._whole(head, body, seconds)
            return
        try:
            client.write_last(b"%b%b%b%b" % (shape.head, self.id, self.kit.stamps.tail, body))
        except Exception as failure:
            self.crash(failure)
            return
        self._over_well(seconds)

    def _whole(self, head: KnownHead, body: bytes, seconds: float) -> None:
        """As `whole`; the first time, or on a connection that is to end."""
        try:
            shape: Shape | None = head.made
            if shape is None:
                head.made = shape = self.kit.shapes.of(head.status, head.fields, False)
            if shape.whole:
                self.write_whole(shape, body)
            else:
                self.begin(shape)
                if body:
                    self.more(body)
                self.finish()
        except BadFunctionResponse as error:
            self.fail(error)
            self._over(error, False, seconds)
        except Exception as failure:
            self.crash(failure)
        else:
            self._over(None, shape.handled, seconds)

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        try:
            self.begin(self.kit.shapes.of(status, headers, self.plan.is_head))
        except BadFunctionResponse as error:
            self._broken(error)
        except Exception as failure:
            self.crash(failure)

    def data(self, piece: bytes) -> None:
        if self._claim is None:
            return  # the rest of what was broken
        try:
            self.more(piece)
        except BadFunctionResponse as error:
            self._broken(error)
        except Exception as failure:
            self.crash(failure)

    def end(self, error: BaseException | None) -> None:
        if self._claim is None:
            return
        try:
            if error is not None:
                raise error
            self.check()
            self.finish()
        except FaasError as failure:
            error = failure
            self.fail(failure)
        except BaseException as failure:
            error = failure
            self.fail(_ours(failure, self.request_id))
        shape = self.shape
        self._over(error, shape is not None and shape.handled)

    def _broken(self, error: BadFunctionResponse) -> None:
        if self._claim is not None:
            self._claim.abandon()
        self.fail(error)
        self._over(error, False)

    def _client_left(self) -> None:
        if self._claim is not None:
            self._claim.abandon()
        self._over(None, self.shape is not None and self.shape.handled)

    async def _invoke(self, wait_seconds: float) -> None:
        plan, invoker = self.plan, self.kit.invoker
        request = plan.http_request(self.body, self._client.address, self.request_id)
        call = invoker.invoke_http(
            plan.route, request, trigger=Trigger.HTTP, request_id=self.request_id, wait_seconds=wait_seconds
        )
        async with call as response:
            shape = self.kit.shapes.of_texts(response.status, response.headers, plan.is_head)
            self.begin(shape)
            if not shape.bodiless:
                async for piece in response.body:
                    self.more(piece)
                    await self._client.drained()
                self.check()
        self.finish()


class EventExchange(Exchange):
    """A Lambda function's. Once it runs, it runs to its end, whether or not its client is there."""

    _not_passed: BaseException | None = None  # why a streamed answer was not

    def _event(self) -> tuple[bytes, str]:
        """The event, and its trace id."""
        plan, kit, now = self.plan, self.kit, time()
        trace_id = plan.trace_id.encode() or kit.traces.next(now)
        values = [self.id, kit.stamps.event_time, b"%d" % (now * 1000), b"false", trace_id]
        self._trace_id = trace_id.decode()
        return plan.event(self._client.template(plan), values, self.body), self._trace_id

    def _go(self, claim: Claim) -> None:
        event, trace_id = self._event()
        claim.invoke(event, self._ended, self._on_stream, trace_id)

    def _on_stream(self, result: StreamedResult) -> None:
        self._task = self.kit.run(self._carried(result))

    async def _carried(self, result: StreamedResult) -> None:
        try:
            if self._client.is_there(self):
                await self._pass_on(result)
        except Exception as error:
            self._not_passed = error
            self.fail(error if isinstance(error, FaasError) else _ours(error, self.request_id))
        finally:
            await closed(result.body)

    async def _pass_on(self, result: StreamedResult) -> None:
        status, headers = streamed_head(result.prelude, result.content_type)
        self.begin(self.kit.shapes.of_event(status, headers, self.plan.is_head))
        async for piece in result.body:
            self.more(piece)
            await self._client.drained()
        self.finish()

    def _ended(self, result: InvocationResult | None, error: BaseException | None) -> None:
        try:
            claim = self._claim
            if result is not None and self._task is None and self.answers_plainly(result):
                assert claim is not None
                assert claim.report is not None
                self._over_well(claim.report[0])
                return
        except Exception as failure:
            self.fail(_ours(failure, self.request_id))
            self._over(failure, False)
            return
        if result is not None and (size := len(result.payload)) > SYNC_PAYLOAD_BYTES:
            result, error = None, too_large(size)
        handled = result is not None and result.error_type is not None
        if self._task is None and self._client.is_there(self):
            self._answer(result, error)
        self._over(error or self._not_passed, handled)

    def _answer(self, result: InvocationResult | None, error: BaseException | None) -> None:
        try:
            if result is not None:
                self.result(result)
            elif isinstance(error, FaasError):
                self.fail(error)
            else:
                self.fail(_ours(error, self.request_id))
        except FaasError as refused:
            self.fail(refused)
        except Exception as failure:
            self.fail(_ours(failure, self.request_id))

    def _client_left(self) -> None:
        """Nobody is told; it is counted when it ends."""

    async def _invoke(self, wait_seconds: float) -> None:
        event, trace_id = self._event()
        call = self.kit.invoker.invoke_streaming(
            self.plan.route,
            event,
            trigger=Trigger.HTTP,
            request_id=self.request_id,
            trace_id=trace_id,
            wait_seconds=wait_seconds,
        )
        async with call as result:
            if isinstance(result, StreamedResult):
                await self._pass_on(result)
                return
        self.result(result)


def _ours(error: BaseException | None, request_id: str) -> FaasError:
    """What the client is told; `fail` logs it with its cause."""
    told = FaasError(f"our fault; it is logged with request id {request_id}")
    told.__cause__ = error
    return told
