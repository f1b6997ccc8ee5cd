"""`Wire`: one WebSocket connection's bytes. Reads frames instead of aiohttp's parser, answers control frames by itself,
hands whole messages on one after the other, and holds its client back where nobody takes them.

It calls `gone` once, at the moment when the connection is no connection any more; the bytes' own end comes after.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from aiohttp import web

from faas.bodies import Bodies, Share
from faas.errors import Throttled, Unavailable
from gateway.edge.websocket.frames import (
    ABNORMAL,
    POLICY,
    TRY_AGAIN,
    Broken,
    Frames,
    Opcode,
    Piece,
    close_frame,
    frame,
)

WAITING = 8  # messages that were read and not yet taken
OUT_BYTES = 262_144  # of one connection, that the kernel has not taken
CONTROLS, CONTROLS_SECONDS = 100, 10.0  # pings and pongs of one client
REPLY_SECONDS = 60.0  # for a client to take what was sent before
CLOSE_SECONDS = 5.0  # for a client to answer our close

Gone = Callable[[int, str], None]  # (close code, reason)


class Wire:
    """`answer` is the 101 that was sent on `transport`; `bodies` counts what lies here; `wrote` is called whenever
    bytes were sent."""

    __slots__ = (
        "_ahead", "_answer", "_closing", "_closing_ends", "_controls", "_controls_since", "_deaf", "_ended",
        "_frames", "_gone", "_loop", "_max_message", "_over", "_paused", "_share", "_transport", "_waiter",
        "_waiting", "_waiting_bytes", "_wrote", "active", "heard", "received", "sent", "written",
    )  # fmt: skip

    def __init__(
        self,
        answer: web.StreamResponse,
        transport: asyncio.Transport,
        max_message: int,
        max_frame: int,
        bodies: Bodies,
        gone: Gone,
        wrote: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._answer = answer
        self._frames = Frames(max_message, max_frame)
        self._max_message = max_message
        self._share = Share(bodies)
        self._ahead = 0  # of the share: bytes of frames that are not whole
        self._gone: Gone | None = gone
        self._wrote = wrote
        self._waiting: deque[Piece] = deque()
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._closing = False  # a close frame has been sent
        self._closing_ends: asyncio.TimerHandle | None = None
        self._deaf = False  # what comes is not looked at any more
        self._ended = False
        self._paused = False
        self._controls, self._controls_since = 0, 0.0
        self.heard = self.active = self._loop.time()  # a byte came; a message went either way, or a client's ping
        self.received = self.sent = 0  # messages
        self.written = 0  # bytes

    # From the client

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.heard = self._loop.time()
        if not self._deaf:
            self._frames.feed(bytes(data))
            self._read()
        return False, b""

    def feed_eof(self) -> None:
        self.lost()

    def _read(self) -> None:
        """Take what is there, as much as may wait here; hold the client back where that is too much."""
        try:
            while not self._is_full() and not self._deaf and (piece := self._frames.next()) is not None:
                self._take(piece)
            ahead = 0 if self._deaf else self._frames.held
            self._share.take(ahead - self._ahead)
            self._ahead = ahead
        except Broken as error:
            self._deaf = True
            self.close(error.code, error.reason)
        except Unavailable:
            self._deaf = True
            self.close(TRY_AGAIN, "the server holds as many bytes as it may")
        self._pause(self._is_full() and not self._closing)

    def _take(self, piece: Piece) -> None:
        if piece.opcode is Opcode.CLOSE:
            self._deaf = True
            self.close(piece.code, "", told=piece.payload.decode())
            self._end()
        elif piece.opcode in (Opcode.PING, Opcode.PONG):
            self._control(piece)
        elif not self._closing:
            self._share.take(len(piece.payload))
            self.received += 1
            self.active = self.heard
            self._waiting.append(piece)
            self._waiting_bytes += len(piece.payload)
            self._wake()

    def _control(self, piece: Piece) -> None:
        if self.heard - self._controls_since > CONTROLS_SECONDS:
            self._controls, self._controls_since = 0, self.heard
        self._controls += 1
        if self._controls > CONTROLS:
            raise Broken(POLICY, f"more than {CONTROLS} pings and pongs in {CONTROLS_SECONDS:g} s")
        if piece.opcode is Opcode.PING:
            self.active = self.heard
            if self.pending < OUT_BYTES:  # one that does not read its pongs gets none
                self._write(frame(Opcode.PONG, piece.payload))

    def _is_full(self) -> bool:
        return len(self._waiting) >= WAITING or self._waiting_bytes >= self._max_message

    def _pause(self, paused: bool) -> None:
        if paused is self._paused or self._transport.is_closing():
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    async def next(self) -> Piece | None:
        """The next message; None once the connection is none any more and all that came before its client's end has
        been taken. Say `done` when a message has been dealt with.
        """
        while not self._waiting:
            if self._gone is None:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        piece = self._waiting.popleft()
        self._waiting_bytes -= len(piece.payload)
        self._read()
        return piece

    def done(self, piece: Piece) -> None:
        self._share.take(-len(piece.payload))

    # To the client

    @property
    def pending(self) -> int:
        """Bytes that the kernel has not taken."""
        return self._transport.get_write_buffer_size()

    @property
    def is_open(self) -> bool:
        return self._gone is not None

    def send(self, opcode: Opcode, payload: bytes) -> None:
        """At once. Raises Throttled where the client does not read what it was sent."""
        if self.pending >= OUT_BYTES:
            raise Throttled("this connection's client does not read what it is sent", reason="SlowConnection")
        self.sent += 1
        self.active = self._loop.time()
        self._write(frame(opcode, payload))

    async def reply(self, opcode: Opcode, payload: bytes) -> None:
        """Once the client has taken what was sent before. Raises TimeoutError where it does not; ConnectionError."""
        if self._closing or self._transport.is_closing():
            return
        data = frame(opcode, payload)
        self.sent += 1
        self.active = self._loop.time()
        self.written += len(data)
        self._wrote()
        async with asyncio.timeout(REPLY_SECONDS):
            await self._answer.write(data)

    def ping(self) -> None:
        self._write(frame(Opcode.PING, b""))

    def _write(self, data: bytes) -> None:
        if self._closing or self._transport.is_closing():
            return
        self._transport.write(data)
        self.written += len(data)
        self._wrote()

    # The end

    def close(self, code: int, reason: str, *, told: str | None = None) -> None:
        """Tell the client, and end once it has answered or has had its time. `told`: the reason that it gave itself."""
        self._tell_gone(code, reason if told is None else told)
        if self._closing:
            return
        self._write(close_frame(code, reason))
        self._closing = True
        if told is None:  # it is we who end it
            while self._waiting:
                self.done(self._waiting.popleft())
        self._pause(False)
        self._closing_ends = self._loop.call_later(CLOSE_SECONDS, self._give_up)

    def cut(self, code: int, reason: str) -> None:
        """End now: nobody reads there."""
        self._tell_gone(code, reason)
        self._transport.abort()
        self._end()

    def lost(self) -> None:
        """The client is not there any more."""
        self._tell_gone(ABNORMAL, "")
        self._end()

    async def over(self) -> None:
        """Until the bytes have ended too."""
        await self._over

    def _tell_gone(self, code: int, reason: str) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone(code, reason)
            self._wake()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = self._deaf = True
        if not self._over.done():  # whoever waited may have been cancelled, and it with them
            self._over.set_result(None)
        self._share.take(-self._ahead)
        self._ahead = 0
        if self._closing_ends is not None:
            self._closing_ends.cancel()
        if not self._transport.is_closing():
            self._transport.close()

    def _give_up(self) -> None:
        self._transport.abort()  # what it has not taken by now, our close among it, is not waited for
        self._end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
