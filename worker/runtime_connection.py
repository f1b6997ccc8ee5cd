"""One connection of a runtime to its Runtime API: HTTP/1.1 in, with every size bounded; one write per answer.

One request at a time: who sends a second one before the answer to the first is cut off, and who does not read answers
is not read either.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
from http import HTTPStatus
from typing import Protocol, cast

import httptools

from faas.errors import BadFunctionResponse, FaasError
from worker.answer_stream import AnswerStream
from worker.runtime_requests import Known, known

READ_BYTES = 65_536  # at a time: as tiny chunks they take 4 ms
HEAD_BYTES = 65_536  # of a head, of trailers, of the framing between two pieces of a body
FIELDS = 128
PAYLOAD_BYTES = 6_291_556  # Lambda's 6 MiB + 100 bytes
STREAMED_BYTES = 200 * 1_048_576  # Lambda's limit of a streamed answer; its 2 MB/s after the first 6 MB are not ours
DISCARDED_BYTES = 64 * 1_048_576  # of an answer over the limit: read and dropped, so that the runtime gets its 413

# Of all connections: what was read is parsed before the next read.
_READ = memoryview(bytearray(READ_BYTES))
_ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"status":"OK"}\n'
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Api(Protocol):
    """What a connection tells and asks its `RuntimeApi`."""

    def connected(self, connection: RuntimeConnection) -> bool: ...
    def disconnected(self, connection: RuntimeConnection) -> None: ...
    def body_limit(self, connection: RuntimeConnection) -> int:
        """How much of the body that is announced shall be kept; 0: the request is refused before its body."""
        ...

    def keep(self, connection: RuntimeConnection, size: int) -> bool:
        """Whether there is room for so many bytes more in what this instance's connections keep together."""
        ...

    def release(self, connection: RuntimeConnection, size: int) -> None: ...
    def route(self, connection: RuntimeConnection) -> None: ...
    def take(self, connection: RuntimeConnection, request: Known) -> bool:
        """Whether this answer was expected, and has been taken."""
        ...

    def poll(self, connection: RuntimeConnection) -> None: ...
    def stream(self, connection: RuntimeConnection) -> AnswerStream | None:
        """Who takes the answer that begins piece by piece; None: it is kept like any other."""
        ...

    def broke(self, connection: RuntimeConnection, error: FaasError) -> None:
        """The answer that streams is none."""
        ...

    def truncated(self, connection: RuntimeConnection) -> None:
        """The connection ended in the midst of an answer that streams."""
        ...


class _Over(Exception):
    """Nothing more of this connection is parsed: it has had its last answer."""


class RuntimeConnection(asyncio.BufferedProtocol):
    """`path`, `method`, `content_type`, `error_type`, `error_body`, `has_body`, `size` and `oversized` describe the
    request being answered; `size` is what its body has, or says that it has; `streamed` is who takes that as it comes.
    `useful`: it had an event or gave an answer."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._transport: asyncio.Transport | None = None
        self._liveness: select.poll | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._framing = 0  # bytes since a request began or had a piece of body
        self._advanced = False  # one of that in this read
        self._completed = False  # a request was complete in this read
        self._in_head = False
        self._waiting = False  # parked: a further request now is a violation
        self._keep_alive = True
        self._body = bytearray()
        self._owed = b""  # an answer that goes with the next one in one write
        self._within = False  # a request has begun and is not complete
        self._may_poll = False  # an answer was taken: the poll for the next event may have come with it
        self._is_held = False  # who takes its stream does not take more now
        self._pauses = False
        self.useful = False
        self.is_behind = False  # it does not read what it was sent
        self._reset()

    def _reset(self) -> None:
        self.path = b""
        self.method = b""
        self.content_type = ""
        self.error_type = ""
        self.error_body = b""
        self.streamed: AnswerStream | None = None
        self.has_body = self.oversized = False
        self._declared = self._received = self._fields = self._limit = 0
        self._streaming = False
        self._expects = False

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = transport
        if not self._api.connected(self):
            transport.abort()
            return
        endpoint: socket.socket = transport.get_extra_info("socket")
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _READ

    def buffer_updated(self, nbytes: int) -> None:
        if not self._within and not self._waiting:
            request = known(bytes(_READ[:nbytes]))
            if request is not None and self._take(request):
                return
        self._advanced = self._completed = self._may_poll = False
        try:
            self._parser.feed_data(_READ[:nbytes])
        except httptools.HttpParserUpgrade:
            self.send_error(400, "BadRequest", "no upgrades here", close=True)
            return
        except httptools.HttpParserError:
            self.send_error(400, "BadRequest", "not HTTP/1.1", close=True)  # unless it is closed already
            return
        self._framing = 0 if self._advanced else self._framing + nbytes
        if self._framing > HEAD_BYTES:
            self.send_error(431, "RequestHeaderFieldsTooLarge", "the request's head is too large", close=True)

    def _take(self, request: Known) -> bool:
        """Whether it was answered here: what was not expected is for the general parser."""
        if request.body is None:
            self._waiting = True
            self._api.poll(self)
            return True
        if not self._api.take(self, request):
            return False
        if request.polls:
            # Its answer goes with the next event. Not now: what the function wrote before is still to be read.
            self._owed, self._waiting = _ACCEPTED, True
            asyncio.get_running_loop().call_soon(self._poll)
        else:
            self.send_accepted()
        return True

    def _poll(self) -> None:
        if not self._closing:
            self._api.poll(self)

    def pause_writing(self) -> None:
        self.is_behind = True
        self._pause_or_resume()

    def resume_writing(self) -> None:
        self.is_behind = False
        self._pause_or_resume()

    def hold(self, held: bool) -> None:
        """Of `worker.answer_stream.Source`."""
        self._is_held = held
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        pauses = self.is_behind or self._is_held
        if pauses != self._pauses and self._transport is not None and not self._closing:
            self._pauses = pauses
            if pauses:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming:
            self._api.truncated(self)
        self._drop_body()
        self._api.disconnected(self)

    # httptools

    def on_message_begin(self) -> None:
        if self._waiting or (self._completed and not self._may_poll):
            self.abort()
            raise _Over
        self._may_poll = False
        self._reset()
        self._within = True
        self._advanced = self._in_head = True

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > FIELDS:
            self.send_error(431, "RequestHeaderFieldsTooLarge", f"more than {FIELDS} header fields", close=True)
            raise _Over
        lower = name.lower()
        if lower in (b"lambda-runtime-function-error-type", b"error-type"):
            self.error_type = value.decode("latin-1")[:256]
        elif lower == b"lambda-runtime-function-error-body":
            self.error_body = value
        elif not self._in_head:
            return  # of trailers only the error counts
        elif lower == b"content-length":
            self._declared = int(value)
            self.has_body = self._declared > 0
            self.oversized = self._declared > PAYLOAD_BYTES
        elif lower == b"transfer-encoding":
            self.has_body = True
        elif lower == b"content-type":
            self.content_type = value.decode("latin-1")
        elif lower == b"lambda-runtime-function-response-mode":
            self._streaming = value.lower() == b"streaming"
        elif lower == b"expect":
            self._expects = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.method = self._parser.get_method()
        self.path = self.path.partition(b"?")[0]
        if not self.has_body:
            return
        self._limit = self._api.body_limit(self)
        if not self._limit or self._declared > DISCARDED_BYTES:
            self._refuse()
        elif self._expects and not self.oversized and self._transport is not None:
            self._transport.write(_CONTINUE)
        if self._streaming:
            self.streamed = self._api.stream(self)
            self.oversized = self.oversized and self.streamed is None

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        self._received += len(body)
        if self.streamed is not None:
            self._pass_on(self.streamed, body)
        elif self._received > PAYLOAD_BYTES:
            self.oversized = True
            self._drop_body()
            if self._received > DISCARDED_BYTES:
                self._refuse()
        elif not self.oversized and (piece := body[: self._limit - len(self._body)]):
            if not self._api.keep(self, len(piece)):
                self._drop_body()
                self.send_error(429, "TooManyBytes", "too many bodies are on their way at once", close=True)
                raise _Over
            self._body += piece

    def _pass_on(self, streamed: AnswerStream, body: bytes) -> None:
        self.oversized = self._received > STREAMED_BYTES
        try:
            if not self.oversized:
                streamed.feed(body)
                return
        except BadFunctionResponse as error:
            self._api.broke(self, error)
        self._refuse()

    def on_message_complete(self) -> None:
        self._completed = self._advanced = True
        self._within = False
        self._streaming = False  # complete: it cannot break off any more
        self._keep_alive = self._parser.should_keep_alive()
        self._waiting = self.path.endswith(b"/invocation/next")
        self._api.route(self)
        self._drop_body()

    def _refuse(self) -> None:
        """Answer before the end of a body that is not worth reading."""
        self._keep_alive = self._streaming = False
        self._api.route(self)
        raise _Over

    def _drop_body(self) -> None:
        self._api.release(self, len(self._body))
        self._body = bytearray()

    # For the RuntimeApi

    @property
    def size(self) -> int:
        return max(self._declared, self._received)

    @property
    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def body(self) -> bytes:
        return bytes(self._body)

    def is_alive(self) -> bool:
        """Whether the other end is still there: one system call, since the loop may not have read its end yet."""
        if self._transport is None or self._transport.is_closing():
            return False
        if self._liveness is None:
            self._liveness = select.poll()
            self._liveness.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not self._liveness.poll(0)

    def send_accepted(self) -> None:
        """Its answer was taken."""
        self._may_poll = True
        self.send(_ACCEPTED)

    def send_error(self, status: int, error_type: str, message: str, *, close: bool = False) -> None:
        body = json.dumps({"errorType": error_type, "errorMessage": message}).encode()
        self.send_answer(status, body, close=close)

    def send_answer(self, status: int, body: bytes, more: str = "", *, close: bool = False) -> None:
        """`body` is JSON, or nothing; `more`: header lines, each with its end."""
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{more}"
        if body:
            head += "Content-Type: application/json\r\n"
        self._keep_alive = self._keep_alive and not close
        if not self._keep_alive:
            head += "Connection: close\r\n"
        if status != HTTPStatus.NO_CONTENT:
            head += f"Content-Length: {len(body)}\r\n"
        self.send(f"{head}\r\n".encode() + body)

    def send(self, data: bytes) -> None:
        self._waiting = False
        if self._transport is None or self._transport.is_closing():
            return
        if self._owed:
            data, self._owed = self._owed + data, b""
        self._transport.write(data)
        if not self._keep_alive:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
