"""The client side of http functions: requests to a port inside a sandbox, streamed both ways."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType

from faas.background import Background
from faas.errors import InvalidInput
from faas.leases import HttpRequest, HttpResponse
from worker.drivers.base import Sandbox
from worker.http_connection import BrokenConnection, HttpConnection
from worker.http_reader import HttpReader
from worker.known_heads import KnownHeads

ONE_WRITE_BYTES = 65_536  # a body up to this goes with its head: two small writes would meet Nagle
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BAD_VALUE = re.compile(r"[\x00\r\n]")
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "upgrade"})


class HttpClient:
    """Connections to one instance's port; at most `idle` are kept open between requests.

    `resting`: those, for whoever takes one by `pop` and puts it back by `keep`; one that is not open any more may be
    among them.
    """

    def __init__(self, sandbox: Sandbox, port: int, idle: int) -> None:
        self._sandbox = sandbox
        self._port = port
        self._most_idle = idle
        self.resting: list[HttpConnection] = []
        self._all: set[HttpConnection] = set()
        self._opening = Background()
        self._heads = KnownHeads()
        self._is_closed = False

    async def connect(self) -> HttpConnection:
        """Raises OSError where nothing listens."""
        endpoint = await self._sandbox.connect(self._port)
        try:
            made = partial(HttpConnection, self._heads)
            _, connection = await asyncio.get_running_loop().create_connection(made, sock=endpoint)
        except BaseException:
            endpoint.close()
            raise
        if self._is_closed:
            connection.abort()
            raise ConnectionResetError("the instance has ended")
        self._all.add(connection)
        return connection

    def keep(self, connection: HttpConnection) -> None:
        """Back for the next request."""
        connection.has_served = True
        if len(self.resting) < self._most_idle:
            self.resting.append(connection)
        else:
            self.drop(connection)

    def rest(self, connection: HttpConnection) -> None:
        """As `keep`, of one that is unused."""
        if len(self.resting) < self._most_idle:
            self.resting.append(connection)
        else:
            self.drop(connection)

    def drop(self, connection: HttpConnection) -> None:
        self._all.discard(connection)
        connection.abort()

    def kept(self) -> HttpConnection | None:
        """One that is open as far as the loop has seen, for a request that can be sent again where it is not."""
        while self.resting:
            connection = self.resting.pop()
            if connection.is_open:
                return connection
            self._all.discard(connection)
        return None

    def open(self, opened: Callable[[HttpConnection | BrokenConnection], None]) -> None:
        """A fresh connection, or why there is none, for `opened`."""

        async def run() -> None:
            try:
                found: HttpConnection | BrokenConnection = await self._fresh()
            except BrokenConnection as broken:
                found = broken
            opened(found)

        self._opening.start(run(), "a connection to an http function")

    async def _fresh(self) -> HttpConnection:
        try:
            return await self.connect()
        except OSError as error:
            raise BrokenConnection(f"does not listen on port {self._port}: {error}", no_listener=True) from None

    async def _connection(self, *, fresh: bool) -> HttpConnection:
        while self.resting and not fresh:
            connection = self.resting.pop()
            if connection.is_alive():
                return connection
            self.drop(connection)
        return await self._fresh()

    async def request(self, request: HttpRequest, exchange: HttpExchange) -> None:
        """Send `request` and await the response's head, in `exchange`. Raises BrokenConnection, InvalidInput.

        A kept connection may be closed by the function just when it is used: tried once more on a fresh one, where
        not a byte had come back and the request can be sent again.
        """
        head = encode_head(request)
        replayable = request.body is None or isinstance(request.body, bytes)
        for fresh in (False, True):
            connection = await self._connection(fresh=fresh)
            exchange.connection = connection
            exchange.check()
            reused = connection.has_served
            exchange.reader = reader = HttpReader(connection)
            try:
                await self._send(reader, request, head, exchange)
                await reader.wait_for_head()
            except BrokenConnection as broken:
                self.drop(connection)
                if fresh or not (reused and replayable and broken.untouched):
                    raise
            else:
                if reader.status == 101 and not request.upgrade:
                    raise BrokenConnection("answered with an upgrade that nobody asked for")
                return

    async def _send(self, reader: HttpReader, request: HttpRequest, head: bytes, exchange: HttpExchange) -> None:
        body, connection = request.body, reader.connection
        if isinstance(body, bytes) and len(body) <= ONE_WRITE_BYTES:
            connection.send(request.method, head + body, reader)
            return
        connection.send(request.method, head, reader)
        if isinstance(body, bytes):
            await connection.write(body)
        elif body is not None:
            exchange.send(_stream(connection, exchange.awaiting(body), request.content_length))

    def close(self) -> None:
        self._is_closed = True
        for connection in list(self._all):
            self.drop(connection)
        self.resting.clear()


class HttpExchange:
    """One request and its answer, from the first byte to the last. `on_end` is called once; `broken` there is what
    the connection failed with, or None."""

    def __init__(self, client: HttpClient, on_end: Callable[[], None]) -> None:
        self._client = client
        self._on_end = on_end
        self._sending: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self.connection: HttpConnection | None = None
        self.reader: HttpReader | None = None
        self.ended = False
        self.awaits_caller = False  # more of the request's body: the function has all that came

    async def awaiting(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`body`, and whether it is waited for."""
        self.awaits_caller = True
        async for piece in body:
            self.awaits_caller = False
            yield piece
            self.awaits_caller = True
        self.awaits_caller = False

    def send(self, work: Awaitable[None]) -> None:
        """Stream the request's body beside waiting for the answer, which may come first."""

        async def run() -> None:
            try:
                await work
            except BrokenConnection:
                pass  # whoever waits for the answer learns it there
            except Exception as error:  # the caller's stream broke: half a request is none
                self.fail(error)

        self._sending = asyncio.get_running_loop().create_task(run(), name="request body")

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def fail(self, error: BaseException) -> None:
        """End it with `error` for whoever waits."""
        self._failure = error
        if self.connection is not None:
            self.connection.fail(error)

    async def end(self) -> None:
        """Over: keep the connection where both sides are done with it, else close it. Idempotent."""
        if self.ended:
            return
        self.ended = True
        sent = self._sending is None or self._sending.done()
        try:
            if self._sending is not None and not sent:
                self._sending.cancel()
                await asyncio.wait((self._sending,))
        finally:  # also where the caller is cancelled meanwhile
            if self.connection is not None:
                if sent and self.connection.is_reusable:
                    self._client.keep(self.connection)
                else:
                    self._client.drop(self.connection)
            self._on_end()


class HttpBody:
    """A response's body: chunks as they come. `translate` turns a broken connection into what callers know."""

    def __init__(self, exchange: HttpExchange, translate: Callable[[BaseException], Awaitable[BaseException]]) -> None:
        self._exchange = exchange
        self._translate = translate

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        reader = self._exchange.reader
        assert reader is not None
        if self._exchange.ended:
            raise StopAsyncIteration
        try:
            data = await reader.read()
        except Exception as error:
            told = await self._translate(error)
            await self._exchange.end()
            raise told from None
        if not data:
            await self._exchange.end()
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        """Done with it, read to the end or not."""
        await self._exchange.end()


class HttpTunnel:
    """An upgraded connection. Implements `faas.leases.Tunnel`."""

    def __init__(self, exchange: HttpExchange) -> None:
        assert exchange.reader is not None
        self._exchange = exchange
        self._reader = exchange.reader

    async def read(self) -> bytes:
        try:
            return await self._reader.read()
        except BrokenConnection:
            return b""

    async def write(self, data: bytes) -> None:
        try:
            await self._reader.connection.write(data)
        except BrokenConnection as broken:
            raise ConnectionResetError(broken.reason) from None

    async def close(self) -> None:
        await self._exchange.end()

    async def __aenter__(self) -> HttpTunnel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def response(exchange: HttpExchange, translate: Callable[[BaseException], Awaitable[BaseException]]) -> HttpResponse:
    """The answer whose head has arrived in `exchange`."""
    reader = exchange.reader
    assert reader is not None
    tunnel = HttpTunnel(exchange) if reader.connection.upgraded else None
    return HttpResponse(reader.status, reader.headers, HttpBody(exchange, translate), tunnel)


def encode_head(request: HttpRequest) -> bytes:
    """The request's head; framing is ours. Raises InvalidInput on what would break out of its line."""
    if not _METHOD.fullmatch(request.method) or not _TARGET.fullmatch(request.target):
        raise InvalidInput("the method or target is not valid HTTP")
    lines = [f"{request.method} {request.target} HTTP/1.1"]
    has_host = False
    for name, value in request.headers:
        lower = name.lower()
        if lower in _FRAMING:
            continue
        if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
            raise InvalidInput("a header field is not valid HTTP")
        has_host = has_host or lower == "host"
        lines.append(f"{name}: {value}")
    if not has_host:
        lines.append("Host: localhost")
    if isinstance(request.body, bytes):
        lines.append(f"Content-Length: {len(request.body)}")
    elif request.body is not None:
        length = request.content_length
        lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    elif request.method in ("POST", "PUT", "PATCH"):
        lines.append("Content-Length: 0")
    if request.upgrade:
        if not _NAME.fullmatch(request.upgrade):
            raise InvalidInput("the protocol to upgrade to is not valid HTTP")
        lines.append(f"Connection: Upgrade\r\nUpgrade: {request.upgrade}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


async def _stream(connection: HttpConnection, body: AsyncIterator[bytes], length: int | None) -> None:
    """Send a body of `length` bytes, or in chunks. Raises InvalidInput where it has another length than declared."""
    sent = 0
    async for piece in body:
        if not piece:
            continue
        sent += len(piece)
        if length is None:
            await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif sent > length:
            raise InvalidInput("the body has more bytes than its Content-Length")
        else:
            await connection.write(piece)
    if length is None:
        await connection.write(b"0\r\n\r\n")
    elif sent < length:
        raise InvalidInput("the body has fewer bytes than its Content-Length")
