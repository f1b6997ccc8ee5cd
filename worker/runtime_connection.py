"""One connection of a runtime to its Runtime API: HTTP/1.1 in, with every size bounded; one write per answer."""

from __future__ import annotations

import asyncio
import json
import select
import socket
from http import HTTPStatus
from typing import Protocol, cast

import httptools

HEAD_BYTES = 65_536
PAYLOAD_BYTES = 6_291_556  # Lambda's 6 MiB + 100 bytes
DISCARDED_BYTES = 64 * 1_048_576  # of a body over the limit: read and dropped, so that the runtime gets its 413

_ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"status":"OK"}\n'
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Api(Protocol):
    """What a connection tells its `RuntimeApi`."""

    def connected(self, connection: RuntimeConnection) -> bool: ...
    def disconnected(self, connection: RuntimeConnection) -> None: ...
    def route(self, connection: RuntimeConnection) -> None: ...
    def truncated(self, connection: RuntimeConnection) -> None: ...


class RuntimeConnection(asyncio.Protocol):
    """`path`, `method`, `content_type`, `error_type`, `size` and `oversized` describe the request being answered;
    `size` is what its body has, or says that it has."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._transport: asyncio.Transport | None = None
        self._liveness: select.poll | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._head_bytes = 0  # of a head that spans several reads
        self._began = False  # a request began in this read
        self._in_head = False
        self._waiting = False  # parked: a further request now is a violation
        self._keep_alive = True
        self._chunks: list[bytes] = []
        self._reset()

    def _reset(self) -> None:
        self.path = b""
        self.method = b""
        self.content_type = ""
        self.error_type = ""
        self.oversized = False
        self._declared = self._received = 0
        self._streaming = False
        self._expects = False
        self._chunks.clear()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._transport = transport
        if not self._api.connected(self):
            transport.abort()
            return
        endpoint: socket.socket = transport.get_extra_info("socket")
        endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._began = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.send_error(400, "BadRequest", "no upgrades here", close=True)
            return
        except httptools.HttpParserError:
            self.send_error(400, "BadRequest", "not HTTP/1.1", close=True)
            return
        if self._in_head and not self._began:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_error(431, "RequestHeaderFieldsTooLarge", "the request's head is too large", close=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._streaming:
            self._api.truncated(self)
        self._api.disconnected(self)

    # httptools

    def on_message_begin(self) -> None:
        if self._waiting:
            self.abort()
            return
        self._reset()
        self._began = self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-length":
            self._declared = int(value)
            self.oversized = self._declared > PAYLOAD_BYTES
        elif lower == b"content-type":
            self.content_type = value.decode("latin-1")
        elif lower in (b"lambda-runtime-function-error-type", b"error-type"):
            self.error_type = value.decode("latin-1")[:256]
        elif lower == b"lambda-runtime-function-response-mode":
            self._streaming = value.lower() == b"streaming"
        elif lower == b"expect":
            self._expects = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.method = self._parser.get_method()
        self.path = self.path.partition(b"?")[0]
        if self._declared > DISCARDED_BYTES:
            self._refuse()
        elif self._expects and not self.oversized and self._transport is not None:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self.oversized:
            if self._received > DISCARDED_BYTES:
                self._refuse()
        elif self._received > PAYLOAD_BYTES:
            self.oversized = True
            self._chunks.clear()
        else:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if self._closing:
            return
        self._streaming = False  # complete: it cannot break off any more
        self._keep_alive = self._parser.should_keep_alive()
        self._waiting = self.path.endswith(b"/invocation/next")
        self._api.route(self)

    def _refuse(self) -> None:
        """Answer before the end of a body that is not worth reading."""
        if not self._closing:
            self._keep_alive = False
            self._api.route(self)

    # For the RuntimeApi

    @property
    def size(self) -> int:
        return max(self._declared, self._received)

    @property
    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def body(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)

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
        if close:
            self._keep_alive = False
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
