"""`HttpExchange`: a request of an http function: sent as it goes over the wire, answered as its answer comes."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from faas.errors import BadFunctionResponse, FaasError
from faas.leases import Claim, KnownHead, Trigger
from gateway.lane.exchange import Exchange, ours
from gateway.lane.shape import Shape


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
            self.fail(ours(failure, self.request_id))
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
