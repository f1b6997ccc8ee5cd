"""`EventExchange`: a request of a Lambda function: an event, and a result that may come piece by piece."""

from __future__ import annotations

from time import time

from faas.errors import FaasError
from faas.leases import Claim, InvocationResult, StreamedResult, Trigger
from gateway.event import streamed_head
from gateway.invoke import SYNC_PAYLOAD_BYTES, closed, too_large
from gateway.lane.exchange import Exchange, ours


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
            self.fail(error if isinstance(error, FaasError) else ours(error, self.request_id))
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
            self.fail(ours(failure, self.request_id))
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
                self.fail(ours(error, self.request_id))
        except FaasError as refused:
            self.fail(refused)
        except Exception as failure:
            self.fail(ours(failure, self.request_id))

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
