"""One request and its answer, from admission to the last byte: by callbacks where a slot is free or only a turn has to
be waited for, by a task through the invoker where an instance has.

What is counted, and when, is as in `gateway.invoke`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from time import monotonic

from faas.errors import FaasError, ShuttingDown, Throttled
from faas.leases import Claim
from gateway.edge.witness import GONE
from gateway.flight import CURRENT, Flight
from gateway.lane.answer import Answer
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

    def stop(self) -> None:
        """The server ends: the client is told, or sees that the answer is not whole."""
        self.fail(ShuttingDown())
        self.gone()

    def crash(self, error: Exception) -> None:
        """Our own fault: nothing may stay taken."""
        if self._claim is not None:
            self._claim.abandon()
            self._over(error, False)
        if self._client.is_there(self):
            self.fail(ours(error, self.request_id))

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
            turn = self.line_up(plan.gate, self, self._began)
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
        now = monotonic()
        try:
            claim = self.take_turn(turn, self.request_id, now)
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
            self.fail(ours(failure, self.request_id))

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


def ours(error: BaseException | None, request_id: str) -> FaasError:
    """What the client is told; `fail` logs it with its cause."""
    told = FaasError(f"our fault; it is logged with request id {request_id}")
    told.__cause__ = error
    return told
