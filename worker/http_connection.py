"""One HTTP/1.1 connection to an http function's port. The function is a hostile peer: every size is bounded, what is
not a response is a `BrokenConnection`, and reading stops while nobody takes what was read.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from typing import cast

import httptools

HEAD_BYTES = 65_536
FIELDS = 256
OVERHEAD_BYTES = 65_536  # framing (chunk extensions, trailers) between two pieces of body
INTERIM_RESPONSES = 8  # 1xx
HIGH_BYTES = 262_144  # read ahead of the reader


class BrokenConnection(Exception):
    """The function's side of HTTP broke: the reason in words, as what the function did. `untouched`: not one byte had
    come back; `no_listener`: not even a connection was had."""

    def __init__(self, reason: str, *, untouched: bool = False, no_listener: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.untouched = untouched
        self.no_listener = no_listener


class HttpConnection(asyncio.Protocol):
    """`head()` awaits the response's head: `status` and `headers` are set then. `read()` gives the body."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._liveness: select.poll | None = None
        self._parser: httptools.HttpResponseParser | None = None  # while a response is awaited
        self._waiter: asyncio.Future[None] | None = None  # of `head` or `read`
        self._writable: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._paused = False
        self._lost = False
        self._error: BaseException | None = None
        self.served = 0
        self._expect("")

    def _expect(self, method: str) -> None:
        self._bodyless = method == "HEAD"
        self._head_bytes = self._overhead = self._interim = self._header_bytes = 0
        self._touched = self._head_done = self._complete = self._until_end = False
        self._framed = self._reusable = self._beyond = False
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.upgraded = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._head_done and self._until_end and exc is None and self._error is None:
            self._complete = True
        elif not self._complete:
            reason = "closed the connection without an answer" if not self._touched else "broke off its answer"
            self.fail(BrokenConnection(reason, untouched=not self._touched))
        self._wake()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        if self.upgraded:
            self._push(data)
            return
        if self._parser is None or self._complete:
            self._reusable = False
            self.abort()  # nobody asked: what would come next cannot be trusted
            return
        self._touched = True
        before = self._buffered
        in_head = not self._head_done
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.status == 101:
                self.upgraded = True
                self._push(data[upgrade.args[0] :])
                self._wake()
                return
            self.fail(BrokenConnection("answered with an upgrade that nobody asked for"))
            return
        except httptools.HttpParserError as error:
            self.fail(BrokenConnection(f"did not answer in HTTP/1.1: {error}"))
            return
        self._check_bounds(len(data), self._buffered - before, in_head)

    def _check_bounds(self, size: int, body: int, in_head: bool) -> None:
        if in_head and not self._head_done:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES:
                self.fail(BrokenConnection(f"answered with a head of more than {HEAD_BYTES} bytes"))
        elif not in_head and not self._complete:
            self._overhead = 0 if body else self._overhead + size
            if self._overhead > OVERHEAD_BYTES:
                self.fail(BrokenConnection("answered with more framing than body"))

    # httptools

    def on_message_begin(self) -> None:
        self._beyond = self._complete  # a second answer: nobody asked for it

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # trailers are not passed on
        self._header_bytes += len(name) + len(value)
        if len(self.headers) >= FIELDS or self._header_bytes > HEAD_BYTES:
            self.fail(BrokenConnection(f"answered with more than {FIELDS} header fields or {HEAD_BYTES} bytes of them"))
            return
        lower = name.lower()
        if lower == b"content-length":
            self._framed = True
        elif lower == b"transfer-encoding":
            self._framed = True
            if value.strip().lower() != b"chunked":
                self.fail(BrokenConnection("answered with a Transfer-Encoding other than chunked"))
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._head_done or self._error is not None:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim += 1
            if self._interim > INTERIM_RESPONSES:
                self.fail(BrokenConnection("sent too many interim answers"))
            self.headers.clear()
            self._framed = False
            return
        if not (status == 101 or 200 <= status <= 599):
            self.fail(BrokenConnection(f"answered with status {status}"))
            return
        self.status = status
        self._head_done = True
        self._until_end = not self._framed and status not in (101, 204, 304)
        if self._bodyless:  # the parser cannot know, and would wait for the body that Content-Length announces
            self._complete = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._push(body)

    def on_message_complete(self) -> None:
        if not self._head_done or self._complete:
            return
        assert self._parser is not None
        self._reusable = self._parser.should_keep_alive()
        self._complete = self.status != 101
        self._wake()

    # For the client

    @property
    def is_reusable(self) -> bool:
        """Whether the next request may go over this connection: framed, complete, nothing beyond it."""
        return self._complete and self._reusable and not (self._beyond or self._lost or self._error)

    def is_alive(self) -> bool:
        """One system call: an idle connection that the function has closed must not get a request."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._liveness is None:
            self._liveness = select.poll()
            self._liveness.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP | select.POLLIN)
        return not self._liveness.poll(0)

    def send(self, method: str, data: bytes) -> None:
        """Begin a request: its head, with the body where that is small."""
        assert self._transport is not None
        self._expect(method)
        self._chunks.clear()  # what nobody read of the answer before
        self._buffered = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._parser = httptools.HttpResponseParser(self)
        self.served += 1
        self._transport.write(data)

    async def write(self, data: bytes) -> None:
        """More of the request, or of an upgraded connection; waits while the function does not read."""
        if self._error is not None:
            raise self._error
        if self._transport is None or self._lost:
            raise BrokenConnection("closed the connection")
        self._transport.write(data)
        while self._writable is not None and not self._lost:
            await asyncio.shield(self._writable)

    async def head(self) -> None:
        """Wait for `status` and `headers`. Raises BrokenConnection, or what `fail` was given."""
        while not (self._head_done and (self.status != 101 or self.upgraded)):
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Some of the body; empty at its end. Raises BrokenConnection, or what `fail` was given."""
        while not self._chunks:
            if self._error is not None and not self._complete:
                raise self._error
            if self._complete or self._lost:
                return b""
            await self._wait()
        data = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        if self._paused and self._transport is not None and not self._lost:
            self._paused = False
            self._transport.resume_reading()
        return data

    def fail(self, error: BaseException) -> None:
        """End this connection; whoever waits on it gets `error`."""
        if self._error is None:
            self._error = error
        self._reusable = False
        self._wake()
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # Inside

    def _push(self, data: bytes) -> None:
        if not data:
            return
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > HIGH_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
