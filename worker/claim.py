"""`PoolClaim`: a slot that was free at once, for callers who are called back: no task, no future, no coroutine where
nothing goes wrong. What does go wrong is seen to in a task.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from faas.errors import TimedOut, Unavailable
from faas.leases import Answering, Invocation, InvocationResult, KnownHead, StreamedResult, Trigger
from worker.exchange import Exchange, Undelivered
from worker.http_connection import BrokenConnection
from worker.instance import Instance
from worker.sending import Sending
from worker.slot import OFFERS, Slot, not_http

if TYPE_CHECKING:
    from worker.revision_pool import RevisionPool

_BY_HTTP = Trigger.HTTP
_invocation = tuple.__new__  # `Invocation` itself would call a function written in Python
Ended = Callable[[InvocationResult | None, BaseException | None], None]
Streams = Callable[[StreamedResult], None]


class PoolClaim(Sending, Slot):
    """Implements `faas.leases.Claim`."""

    _ended: Ended | None = None
    _exchange: Exchange | None = None
    _offers = 0  # of the event, that came to nothing
    _began = 0.0  # sent to an http function
    _has_slot = True

    def __init__(self, pool: RevisionPool, instance: Instance, request_id: str) -> None:
        self._pool = pool
        self._instance = instance
        self._request_id = request_id

    # Http functions

    def send(self, method: str, request: bytes, answering: Answering) -> None:
        """Send `request`, and have its answer told to `answering`."""
        instance = self._instance
        if (client := instance.http) is None:
            raise not_http()
        self._client = client
        self._answering = answering
        self._began = now = monotonic()
        instance.begin(self._request_id, now)
        self._method, self._request = method, request
        resting = client.resting
        if resting and (connection := resting.pop()).is_open:
            self._connection = connection
            connection.send(method, request, self)
        elif (kept := client.kept()) is not None:
            self._connection = kept
            kept.send(method, request, self)
        else:
            client.open(self._opened)
        self._pool.deadlines.begin(self, now)

    def whole(self, head: KnownHead, body: bytes) -> None:
        if self._is_over:
            return
        self._is_over = True
        seconds = monotonic() - self._began
        pool, instance = self._pool, self._instance
        try:
            if (answering := self._answering) is not None:  # first: whoever waits need not wait for what follows
                self._answering = None
                answering.whole(head, body, seconds)
        finally:
            pool.deadlines.discard(self)
            if (connection := self._connection) is not None:
                self._client.keep(connection)
            if not instance.ended_well(self._request_id, seconds):
                self._account(seconds, None, None)
            pool.release(instance)

    def _explain(self, broken: BrokenConnection) -> None:
        self._pool.parts.background.start(self._explained(broken), "the end of a broken request")

    async def _explained(self, broken: BrokenConnection) -> None:
        told: BaseException = broken
        try:
            told = await self._translated(broken)
        finally:
            self._over(told)

    def over_time(self, error: TimedOut) -> None:
        """Of an HTTP request."""
        self._failure = error
        self._pool.destroy(self._instance)
        self._fail(error)

    def _over(self, error: BaseException | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._pool.deadlines.discard(self)
        if (connection := self._connection) is not None:
            if error is None and connection.is_reusable:
                self._client.keep(connection)
            else:
                self._client.drop(connection)
        self._account(monotonic() - self._began, self._failure or error, None)
        self._give_back()
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.end(self._failure or error)

    # Runtime API functions

    def invoke(self, event: bytes, ended: Ended, streams: Streams | None = None, trace_id: str = "") -> None:
        """Hand `event` over, and have `ended` called with what becomes of it; `streams` where its answer begins."""
        self._ended = ended
        self._streams = streams
        self._trace_id = trace_id
        self._offer_event(event)

    def _offer_event(self, event: bytes) -> None:
        invocation = _invocation(Invocation, (self._request_id, _BY_HTTP, 0.0, self._trace_id, ""))
        self._exchange = exchange = Exchange(
            invocation,
            event,
            self._pool.deadlines,
            self._handed,
            self._answered,
            takes_pieces=self._streams is not None,
            on_begun=self._streams,
        )
        self._offer(exchange)

    def _answered(self, exchange: Exchange) -> None:
        result = exchange.result
        if exchange.error is None and result is not None and result.error_type is None:  # as nearly always
            pool, instance, seconds = self._pool, self._instance, exchange.ended_at - exchange.handed_at
            self._exchange = None  # each has the other: nothing that the collector has to find
            self.report = report = instance.end(self._request_id, seconds, None, None)
            pool.backoff.succeeded()
            pool.consumption.add_one(report)
            self._has_slot = False
            ended, self._ended = self._ended, None
            pool.passing = instance  # who has waited for it takes it from within `ended`
            pool.moved_at = exchange.ended_at
            try:
                if ended is not None:
                    ended(result, None)
            finally:
                if pool.passing is not None:
                    pool.put_back()
            return
        if isinstance(exchange.error, Undelivered):
            self._pool.parts.background.start(self._try_another(exchange), "an event on its way to another instance")
            return
        self._event_ended(exchange)
        self._tell(exchange.result, exchange.error)

    async def _try_another(self, exchange: Exchange) -> None:
        """The instance ended before it took the event: nothing has happened yet."""
        self._give_back()
        self._offers += 1
        error: BaseException = Unavailable("one instance after the other ended before it took the event")
        try:
            if self._offers < OFFERS and self._ended is not None:
                await self._take(self._pool.revision.spec.queue_timeout)
                self._offer_event(exchange.event)
                return
        except Exception as refused:
            error = refused
        self._tell(None, error)

    def _tell(self, result: InvocationResult | None, error: BaseException | None) -> None:
        self._give_back()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(None if error is not None else result, error)

    # Both

    def abandon(self) -> None:
        """Nobody waits any more. A function with one slot works on, until its answer or its time limit; an answer that
        streams, or one of several, is cut off."""
        self._ended = None
        if self._exchange is not None:
            self._exchange.leave(self._answered)
        if self._answering is None:
            if self._exchange is None and not self._began:  # not even sent: nothing else would give it back
                self._give_back()
            return
        self._answering = None
        if self._instance.slots == 1 and not self._has_head:
            self.resume()
        else:
            self._over(None)
