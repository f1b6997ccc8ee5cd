"""One HTTP/1.1 connection to an http function's port. The function is a hostile peer: every size is bounded, and what
is not a response is a `BrokenConnection`.

It pushes: whoever sends a request is told of its answer as it comes (`Sink`), and pauses it where it comes too fast.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import httptools

from faas.leases import KnownHead
from worker.known_heads import KnownHeads

HEAD_BYTES = 65_536
FIELDS = 256
OVERHEAD_BYTES = 65_536  # framing (chunk extensions, trailers) between two pieces of body
INTERIM_RESPONSES = 8  # 1xx
MANY_PIECES = 1000  # of a body, in one reading: after so many others have a turn


class BrokenConnection(Exception):
    """The function's side of HTTP broke: the reason in words, as what the function did. `untouched`: not one byte had
    come back; `no_listener`: not even a connection was had."""

    def __init__(self, reason: str, *, untouched: bool = False, no_listener: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.untouched = untouched
        self.no_listener = no_listener


class Sink(Protocol):
    """Whose request it is. Called on the loop; it raises nothing."""

    def whole(self, head: KnownHead, body: bytes) -> None:
        """The whole answer at once, instead of the three below: the connection is reusable."""
        ...

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None: ...

    def data(self, piece: bytes) -> None:
        """Some of the body; after a 101 what comes over the upgraded connection."""
        ...

    def end(self, error: BaseException | None) -> None:
        """Once, the last call: the whole answer is there, or a BrokenConnection, or what `fail` was given."""
        ...


def _nowhere(data: bytes) -> None:
    raise BrokenConnection("is not connected")


class HttpConnection(asyncio.Protocol):
    """One request after the other: `send`, and the sink's `end`; `is_reusable` then. `heads`: what the same function
    has answered before."""

    def __init__(self, heads: KnownHeads) -> None:
        self._loop = asyncio.get_running_loop()
        self._heads = heads
        self._transport: asyncio.Transport | None = None
        self._write: Callable[[bytes], None] = _nowhere
        self._liveness: select.poll | None = None
        self._parser: httptools.HttpResponseParser | None = None  # kept from one response to the next
        self._sink: Sink | None = None  # while an answer is awaited
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._lost = False
        self._error: BaseException | None = None
        self.is_open = False  # as far as the loop has seen; `is_alive` asks the kernel
        self.has_served = False  # a request before this one: its client says so
        self._expect(bodyless=False)

    def _expect(self, *, bodyless: bool) -> None:
        self._begun = False  # the parser has had some of the answer
        self._bodyless = bodyless
        self._may_be_known = not bodyless  # the answer to come may have a head that has come before
        self._head_bytes = self._overhead = self._interim = self._header_bytes = self._status = 0
        self._touched = self._head_done = self._complete = False
        self._framed = self._reusable = self._beyond = self._grew = self.upgraded = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []  # of the body, in what is being parsed

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = transport
        self._write = transport.write
        self.is_open = True

    def eof_received(self) -> None:
        """It is closed next."""
        self.is_open = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.is_open = False
        if self._sink is not None:
            until_end = self._head_done and not self._framed and self._status not in (101, 204, 304)
            if until_end and exc is None:
                self._complete = True
                self._told(None)
            else:
                reason = "broke off its answer" if self._touched else "closed the connection without an answer"
                self.fail(BrokenConnection(reason, untouched=not self._touched))
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if self._may_be_known and sink is not None:
            known = self._heads.last
            if len(data) == known.size and data.startswith(known.raw):
                self._sink = None
                sink.whole(known.head, data[known.raw_size :])
                return
            if (found := self._heads.of(data)) is not None:
                self._sink = None
                sink.whole(found.head, data[found.raw_size :])
                return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """What has not come like this before, or comes in pieces."""
        sink = self._sink
        if sink is None:
            self.abort()  # nobody asked: what would come next cannot be trusted
            return
        self._may_be_known = False
        if self.upgraded:
            sink.data(data)
            return
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpResponseParser(self)
        is_first, self._begun = not self._begun, True
        self._touched = True
        self._grew = False
        in_head = not self._head_done
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._hand_on()
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._hand_on()
            if not self._complete:
                self.fail(BrokenConnection(f"did not answer in HTTP/1.1: {error}"))
                return
            self._beyond = True
        self._hand_on()
        if self._complete:
            if is_first and self.is_reusable and not self._bodyless and not self._interim:
                self._heads.learn(data, self._status, self._headers)
            self._told(None)
        elif in_head:
            self._check_head(len(data))
        elif self._grew:
            self._overhead = 0
        else:
            self._check_framing(len(data))

    def _hand_on(self) -> None:
        """The body's pieces in one: a function may answer in chunks of a byte, and each would cost as much as a large
        one."""
        pieces = self._pieces
        if pieces:
            self._pieces = []
            if len(pieces) > MANY_PIECES and self._transport is not None:  # the loop would read on, and serve nobody
                self._transport.pause_reading()
                self._loop.call_soon(self._read_on)
            if self._sink is not None:
                self._sink.data(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _read_on(self) -> None:
        if self._transport is not None and not (self._paused or self._lost):
            self._transport.resume_reading()

    def _upgrade(self, beyond: bytes) -> None:
        if self._complete:
            self._beyond = True
            self._told(None)
        elif self._status != 101:
            self.fail(BrokenConnection("answered with an upgrade that nobody asked for"))
        elif self._sink is not None:
            self.upgraded = True
            self._sink.head(101, self._headers)
            if beyond and self._sink is not None:
                self._sink.data(beyond)

    def _check_head(self, size: int) -> None:
        if not self._head_done:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES:
                self.fail(BrokenConnection(f"answered with a head of more than {HEAD_BYTES} bytes"))

    def _check_framing(self, size: int) -> None:
        self._overhead += size
        if self._overhead > OVERHEAD_BYTES:
            self.fail(BrokenConnection("answered with more framing than body"))

    # httptools

    def on_message_begin(self) -> None:
        self._beyond = self._complete  # a second answer: nobody asked for it

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # trailers are not passed on
        headers = self._headers
        size = len(name)
        self._header_bytes += size + len(value)
        if len(headers) >= FIELDS or self._header_bytes > HEAD_BYTES:
            self.fail(BrokenConnection(f"answered with more than {FIELDS} header fields or {HEAD_BYTES} bytes of them"))
            return
        if size == 14:
            if name.lower() == b"content-length":
                self._framed = True
        elif size == 17 and name.lower() == b"transfer-encoding":
            self._framed = True
            if value.strip().lower() != b"chunked":
                self.fail(BrokenConnection("answered with a Transfer-Encoding other than chunked"))
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._head_done or self._sink is None:
            return
        status = self._parser.get_status_code()
        if not 200 <= status <= 599:
            self._other_head(status)
            return
        self._status = status
        self._head_done = True
        if self._bodyless:  # the parser cannot know, and would wait for the body that Content-Length announces
            self._complete = True
        self._sink.head(status, self._headers)

    def _other_head(self, status: int) -> None:
        if status == 101:  # told of when the parser has left HTTP
            self._status = status
            self._head_done = True
        elif 100 <= status < 200:
            self._interim += 1
            if self._interim > INTERIM_RESPONSES:
                self.fail(BrokenConnection("sent too many interim answers"))
            self._headers.clear()
            self._framed = False
        else:
            self.fail(BrokenConnection(f"answered with status {status}"))

    def on_body(self, body: bytes) -> None:
        if not self._complete and self._sink is not None:
            self._grew = True
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if not self._head_done or self._complete:
            return
        assert self._parser is not None
        if self._status == 101:
            return
        self._reusable = self._parser.should_keep_alive()
        self._complete = True  # told of when all that came with it has been parsed

    # For its client

    @property
    def is_reusable(self) -> bool:
        """Whether the next request may go over this connection: framed, complete, nothing beyond it."""
        whole = self._complete and self._reusable if self._begun else self._sink is None
        return whole and not (self._beyond or self._lost or self._error)

    def is_alive(self) -> bool:
        """One system call: an idle connection that the function has closed must not get a request."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._liveness is None:
            self._liveness = select.poll()
            self._liveness.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP | select.POLLIN)
        return not self._liveness.poll(0)

    def send(self, method: str, data: bytes, sink: Sink) -> None:
        """Begin a request: its head, with the body where that is small."""
        if not self._may_be_known or method == "HEAD":
            if self._bodyless:
                self._parser = None  # it still waits for the body
            self._expect(bodyless=method == "HEAD")
        self._sink = sink
        self._write(data)

    async def write(self, data: bytes) -> None:
        """More of the request, or of an upgraded connection; waits while the function does not read."""
        if self._error is not None:
            raise self._error
        if self._transport is None or self._lost:
            raise BrokenConnection("closed the connection")
        self._transport.write(data)
        while self._writable is not None and not self._lost:
            await asyncio.shield(self._writable)

    def pause(self) -> None:
        """Read no more until `resume`."""
        if not self._paused and self._transport is not None and not self._lost:
            self._paused = True
            self._may_be_known = False  # what has come already is parsed, which resumes at its end
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._lost:
                self._transport.resume_reading()

    def leave(self, sink: Sink) -> None:
        """The rest of the answer is for `sink`."""
        if self._sink is not None:
            self._sink = sink

    def fail(self, error: BaseException) -> None:
        """End this connection; whoever waits for its answer gets `error`."""
        if self._error is None:
            self._error = error
        self._reusable = False
        self.abort()
        self._told(self._error)

    def abort(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # Inside

    def _told(self, error: BaseException | None) -> None:
        sink, self._sink = self._sink, None
        if self._paused:
            self.resume()  # else its end would not be seen while nobody uses it
        if sink is not None:
            sink.end(error)
