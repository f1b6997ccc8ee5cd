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

READ_BYTES = 65_536  # at a time: as tiny chunks they take 4 ms
HEAD_BYTES = 65_536  # of a head, of trailers, of the framing between two pieces of a body
FIELDS = 128
PAYLOAD_BYTES = 6_291_556  # Lambda's 6 MiB + 100 bytes
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

    def keep(self, size: int) -> bool:
        """Whether there is room for so many bytes more in what this instance's connections keep together."""
        ...

    def release(self, size: int) -> None: ...
    def route(self, connection: RuntimeConnection) -> None: ...
    def truncated(self, connection: RuntimeConnection) -> None: ...


class _Over(Exception):
    """Nothing more of this connection is parsed: it has had its last answer."""


class RuntimeConnection(asyncio.BufferedProtocol):
    """`path`, `method`, `content_type`, `error_type`, `has_body`, `size` and `oversized` describe the request being
    answered; `size` is what its body has, or says that it has. `useful`: it had an event or gave an answer."""

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
        self.useful = False
        self.is_behind = False  # it does not read what it was sent
        self._reset()

    def _reset(self) -> None:
        self.path = b""
        self.method = b""
        self.content_type = ""
        self.error_type = ""
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
        self._advanced = self._completed = False
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

    def pause_writing(self) -> None:
        self.is_behind = True
        if self._transport is not None and not self._closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_behind = False
        if self._transport is not None and not self._closing:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming:
            self._api.truncated(self)
        self._drop_body()
        self._api.disconnected(self)

    # httptools

    def on_message_begin(self) -> None:
        if self._waiting or self._completed:
            self.abort()
            raise _Over
        self._reset()
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

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        self._received += len(body)
        if self._received > PAYLOAD_BYTES:
            self.oversized = True
            self._drop_body()
            if self._received > DISCARDED_BYTES:
                self._refuse()
        elif not self.oversized and (piece := body[: self._limit - len(self._body)]):
            if not self._api.keep(len(piece)):
                self._drop_body()
                self.send_error(429, "TooManyBytes", "too many bodies are on their way at once", close=True)
                raise _Over
            self._body += piece

    def on_message_complete(self) -> None:
        self._completed = self._advanced = True
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
        self._api.release(len(self._body))
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
        self.send(_ACCEPTED)

    def send_error(self, status: int, error_type: str, message: str, *, close: bool = False) -> None:
        body = json.dumps({"errorType": error_type, "errorMessage": message}).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        self._keep_alive = self._keep_alive and not close
        if not self._keep_alive:
            head += "Connection: close\r\n"
        self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def send(self, data: bytes) -> None:
        self._waiting = False
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if not self._keep_alive:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
