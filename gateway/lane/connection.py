"""`Connection`: a client's bytes into requests, one at a time, in order; what is not plain goes to the other way.

A connection that was handed over, with the bytes that were read of it, is another one if it comes back (`Lane.wants`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from faas.bodies import BODIES
from faas.errors import FaasError
from faas.pace import Pace, cut, taken
from gateway.lane import head
from gateway.lane.event_exchange import EventExchange
from gateway.lane.exchange import Exchange
from gateway.lane.http_exchange import HttpExchange
from gateway.lane.plan import ADDRESS, Plan
from gateway.lane.plans import Plans
from gateway.lane.template import Template

if TYPE_CHECKING:
    from gateway.lane.lane import Lane

AHEAD_BYTES = 65_536  # read of requests behind the one that is being answered
BODY_SECONDS = 1.0  # for a body to come whole; after that the other way waits for it
NOT_LONG = 0.0  # for less than the time between two looks of the lane: a clock for each request would cost more
PIECES = 4  # in which a head may come: each is looked at from its beginning


def peer_address(transport: asyncio.BaseTransport) -> str:
    """ "" where it has gone."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""


class Connection(asyncio.Protocol):
    """`asyncio` calls in, and so does the exchange whose `Client` it is."""

    __slots__ = (
        "_body_at", "_buffer", "_drain", "_exchange", "_full", "_held", "_is_over", "_kit", "_lane", "_last", "_pace",
        "_paused", "_pieces", "_plan", "_plans", "_template", "_transport", "_watched", "_write", "address", "is_usual",
        "since", "stays",
    )  # fmt: skip

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._kit = lane.kit
        self._transport: asyncio.Transport
        self._write: Callable[[bytes], None]
        self._exchange: Exchange | None = None
        self._buffer = bytearray()  # of the next request, and those behind it
        self._pieces = 0
        self._plan: Plan | None = None  # of the request whose body has not come
        self._body_at = 0
        self._held = 0  # bytes of the body in `BODIES`
        self._paused = False  # we do not read
        self._full = False  # the client does not
        self._pace: Pace | None = None  # of a client that does not
        self._drain: asyncio.Future[None] | None = None
        self._plans: Plans
        self._last: Plan | None = None  # whose template has our address
        self._template: Template
        self.address = ""
        self.stays = True
        self._is_over = False  # no request begins any more
        self._watched = lane.kit.witness is not None
        self.is_usual = not self._watched
        self.since = NOT_LONG  # nothing is being answered since

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)
        self._write = transport.write
        self.address = peer_address(transport)
        self._plans = self._lane.plans(self.address)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._lane.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane.connections.discard(self)
        self._end()
        self._wake()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if self._watched:
                exchange.seen(self.address, gone=True)
            exchange.gone()
        self._let_go()
        self._buffer.clear()
        self._plan = None

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None or self._buffer or self._full:
            self._buffer += data
            if self._exchange is None and not self._full:
                self._next()
            elif len(self._buffer) > AHEAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        plan = self._plans.kept.get(data)
        if plan is not None and not plan.length:  # the usual: one request without a body, seen before
            self._begin(plan, b"")
        else:
            self._buffer += data
            self._next()

    def eof_received(self) -> None:
        """The connection ends with the client's side of it, as on the other way."""

    def pause_writing(self) -> None:
        self._full = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._full = False
        self._pace = None
        self._wake()
        if self._exchange is not None:
            self._exchange.resume()
        elif self._buffer:
            self._next()

    # Requests

    def _next(self) -> None:
        """Begin the request in the buffer, where it is whole."""
        if self._exchange is not None or self._full or not self._buffer or self._is_over:
            return
        plan = self._plan
        if plan is None:
            end = self._buffer.find(b"\r\n\r\n", 0, head.MOST_BYTES)
            if end < 0:
                self._wait_for_head()
                return
            plan = self._plans.of(bytes(self._buffer[: end + 4]))
            if plan is None:
                self._hand_over()
                return
            self._body_at = end + 4
            self._pieces = 0
        end = self._body_at + plan.length
        if plan.length and not self._hold(min(len(self._buffer), end) - self._body_at):
            self._hand_over()  # no room for bodies: says so
        elif len(self._buffer) < end:
            if self._plan is None:
                self._plan, self.since = plan, self._lane.clock()
        else:
            self._plan = None
            body = bytes(self._buffer[self._body_at : end])
            del self._buffer[:end]
            self._begin(plan, body)

    def _wait_for_head(self) -> None:
        self._pieces += 1
        if self._pieces > PIECES or len(self._buffer) >= head.MOST_BYTES or not head.begins_well(bytes(self._buffer)):
            self._hand_over()

    def _begin(self, plan: Plan, body: bytes) -> None:
        kind = EventExchange if plan.is_event else HttpExchange
        self._exchange = exchange = kind(self._kit, self, plan, body)
        try:
            exchange.start()
        except Exception as error:
            exchange.crash(error)

    def _hold(self, size: int) -> bool:
        """Count `size` bytes of a body; whether there is room for them."""
        try:
            BODIES.check(size - self._held)
        except FaasError:
            return False
        BODIES.held += size - self._held
        self._held = size
        return True

    def _let_go(self) -> None:
        BODIES.held -= self._held
        self._held = 0

    def _hand_over(self) -> None:
        """To the other way, which reads all of it again."""
        self._let_go()
        self._lane.connections.discard(self)
        if self._paused:
            self._transport.resume_reading()
        self._lane.hand_over(self._transport, bytes(self._buffer))
        self._buffer.clear()
        self._plan = None
        self._end()

    # For the exchange

    def template(self, plan: Plan) -> Template:
        if plan is not self._last:
            self._template = plan.sent.with_values({ADDRESS: self.address.encode()})
            self._last = plan
        return self._template

    def write(self, data: bytes) -> None:
        self._write(data)

    async def drained(self) -> None:
        while self._full and not self._is_over:
            self._drain = asyncio.get_running_loop().create_future()
            await self._drain

    def is_there(self, answer: object) -> bool:
        return self._exchange is answer

    def write_last(self, data: bytes) -> None:
        self._write(data)
        if self._buffer or self._held:
            self.answered(True)
        else:  # as nearly always
            self._exchange = None
            self.since = NOT_LONG

    def answered(self, keeps: bool) -> None:
        self._over()
        if self._held:
            self._let_go()
        if not keeps:
            self._end()
            self._transport.close()
            return
        self.since = NOT_LONG
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._buffer:
            asyncio.get_running_loop().call_soon(self._next)

    def cut(self, gently: bool) -> None:
        self._over()
        self._end()
        if gently:
            self._transport.close()  # neither the last chunk nor the whole length has been sent: that shows it
        else:
            self._transport.abort()  # here a plain end would look like the answer's own

    def _over(self) -> None:
        exchange, self._exchange = self._exchange, None
        if self._watched and exchange is not None:
            exchange.seen(self.address)

    def _end(self) -> None:
        self._is_over = True
        self.last_call()

    # For the lane

    def last_call(self) -> None:
        """The next answer is the last one."""
        self.stays = self.is_usual = False

    def check(self, now: float, idle_seconds: float) -> None:
        """Whether it may go on waiting for its next request, or for its client to take an answer."""
        if self._full:
            self._check_pace(now)
            return
        if self._exchange is not None:
            return
        if self.since == NOT_LONG:
            self.since = now
        waited = now - self.since
        if self._plan is not None and waited >= BODY_SECONDS:
            self._hand_over()  # there a body has its own time
        elif waited >= idle_seconds:
            self._transport.close()

    def _check_pace(self, now: float) -> None:
        at = taken(self._transport)
        if self._pace is None:
            self._pace = Pace(now, at)
        elif not self._pace.is_kept(now, at):
            cut(self._transport)

    def refuse(self) -> None:
        """No request after the one that is being answered."""
        self._end()
        if self._exchange is None:
            self._transport.close()

    def close(self) -> None:
        """Cut; who waits for an answer is told."""
        self._end()
        if self._exchange is not None:
            self._exchange.stop()
        else:
            self._transport.abort()

    def _wake(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
