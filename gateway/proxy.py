"""Passes HTTP requests on to http functions: streamed both ways with back-pressure, WebSocket included.

Nothing of the connection's own framing crosses in either direction: hop-by-hop fields are dropped, lengths are
checked, the status text of a function is never copied.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from faas.errors import BadFunctionResponse, FaasError, InvalidInput
from faas.leases import HttpRequest, HttpResponse, Trigger, Tunnel
from faas.web import PROGRESS_SECONDS, REQUEST_ID_HEADER, read_body, read_chunk
from gateway.headers import content_length, inbound, outbound
from gateway.invoke import Invoker
from gateway.router import Route

WHOLE_BYTES = 65_536  # bodies up to this are moved as one piece: one write instead of several
TUNNEL_BYTES = 262_144  # read from a WebSocket client ahead of what the function takes
SERVER = "faas"


async def proxy(
    request: web.Request, invoker: Invoker, route: Route, target: str, request_id: str, *, authorization: bool
) -> web.StreamResponse:
    """Answer `request` by the function's own answer to `target` (path and query).

    `authorization`: whether that field is the function's. Raises what the invocation raises, as long as no byte of an
    answer has been sent; after that the connection is cut.
    """
    upgrade = _upgrade(request)
    length = request.content_length
    body: bytes | AsyncIterator[bytes] | None = None
    if request.body_exists and not upgrade:
        await expected(request)
        whole = length is not None and length <= WHOLE_BYTES
        body = await read_body(request, WHOLE_BYTES) if whole else _streamed(request)
    call = HttpRequest(
        request.method, target, tuple(inbound(request, request_id, authorization=authorization)), body, length, upgrade
    )
    sent: web.StreamResponse | None = None
    try:
        async with invoker.invoke_http(route, call, trigger=Trigger.HTTP, request_id=request_id) as response:
            if upgrade and response.status == 101 and response.tunnel is not None:
                return await _tunnel(request, response, response.tunnel, request_id)
            answer = _head(request, response, request_id)
            if upgrade:
                answer.force_close()  # what follows was meant for the other protocol
            if isinstance(answer, web.Response):
                if not _bodiless(request, response):
                    answer.body = await _whole(response, content_length(response.headers) or 0)
                return answer
            await answer.prepare(request)
            sent = answer
            await _send(response, answer)
            return answer
    except FaasError:
        if sent is None:
            raise
        cut(request)
        return sent


async def expected(request: web.Request) -> None:
    """Answer `Expect: 100-continue`, now that the body is wanted. Raises InvalidInput for another expectation."""
    expectation = request.headers.get(hdrs.EXPECT)
    if expectation is None:
        return
    if expectation.lower() != "100-continue":
        raise InvalidInput("this expectation cannot be met")
    if request.transport is not None and not request.transport.is_closing():
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def cut(request: web.Request) -> None:
    """End the connection so that the client sees that the answer is not whole."""
    if request.transport is None:
        return
    if request.version >= (1, 1):
        request.transport.close()  # neither the last chunk nor the whole length has been sent: that shows it
    else:
        request.transport.abort()  # here a plain end would look like the answer's own


def _upgrade(request: web.Request) -> str:
    """`websocket` where the request asks for it; other upgrades are ignored, as HTTP allows."""
    asked = request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"
    tokens = {token.strip().lower() for token in request.headers.get(hdrs.CONNECTION, "").split(",")}
    plain = request.method == "GET" and request.version >= (1, 1) and not request.body_exists
    return "websocket" if asked and "upgrade" in tokens and plain else ""


def _bodiless(request: web.Request, response: HttpResponse) -> bool:
    return request.method == "HEAD" or response.status in (204, 304)


def _head(request: web.Request, response: HttpResponse, request_id: str) -> web.StreamResponse:
    """The answer without its body: a `Response` where the body is none or small, else a stream."""
    if not 200 <= response.status <= 599:
        raise BadFunctionResponse("the function's answer has a status that is none")
    headers = outbound(response.headers)
    headers[REQUEST_ID_HEADER] = request_id
    headers.setdefault("Server", SERVER)
    length = content_length(response.headers)
    if _bodiless(request, response):
        if length is not None and request.method == "HEAD":
            headers["Content-Length"] = str(length)
        return web.Response(status=response.status, headers=headers)
    if length is not None and length <= WHOLE_BYTES:
        return web.Response(status=response.status, headers=headers)
    stream = web.StreamResponse(status=response.status, headers=headers)
    stream.content_length = length
    return stream


async def _whole(response: HttpResponse, length: int) -> bytes:
    body = b""
    async for chunk in response.body:
        body += chunk
        if len(body) > length:
            break
    if len(body) != length:
        raise BadFunctionResponse("the function's answer is not as long as it says")
    return body


async def _send(response: HttpResponse, answer: web.StreamResponse) -> None:
    length, sent = answer.content_length, 0
    async for chunk in response.body:
        sent += len(chunk)
        if length is not None and sent > length:
            break
        await answer.write(chunk)
    if length is not None and sent != length:
        raise BadFunctionResponse("the function's answer is not as long as it says")
    await answer.write_eof()


async def _streamed(request: web.Request) -> AsyncIterator[bytes]:
    while chunk := await read_chunk(request):
        yield chunk


async def _tunnel(request: web.Request, response: HttpResponse, tunnel: Tunnel, request_id: str) -> web.StreamResponse:
    """Carry bytes both ways until either side ends; neither is looked at."""
    headers = outbound(response.headers)
    headers[REQUEST_ID_HEADER] = request_id
    headers[hdrs.CONNECTION] = "Upgrade"
    headers[hdrs.UPGRADE] = "websocket"
    answer = web.StreamResponse(status=101, headers=headers)
    answer.force_close()
    await answer.prepare(request)
    if request.transport is None:
        return answer
    client = _ClientBytes(request.transport)
    request.protocol.set_parser(client)  # type: ignore[arg-type] # feed_data and feed_eof are all it uses
    pumps = [
        asyncio.create_task(_to_function(client, tunnel)),
        asyncio.create_task(_to_client(tunnel, answer)),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        with contextlib.suppress(OSError, FaasError):
            await tunnel.close()
        if request.transport is not None:
            request.transport.close()
    return answer


async def _to_function(client: _ClientBytes, tunnel: Tunnel) -> None:
    while data := await client.read():
        # While reading pauses, a client that has gone is not seen: without a deadline the slot would stay taken.
        async with asyncio.timeout(PROGRESS_SECONDS):
            await tunnel.write(data)


async def _to_client(tunnel: Tunnel, answer: web.StreamResponse) -> None:
    while data := await tunnel.read():
        await answer.write(data)


class _ClientBytes:
    """What a hijacked connection receives, instead of aiohttp's parser; reading pauses where nobody takes it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._received: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._received.append(bytes(data))
        self._size += len(data)
        if self._size > TUNNEL_BYTES and not self._transport.is_closing():
            self._transport.pause_reading()
        self._wake()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._wake()

    async def read(self) -> bytes:
        while not self._received:
            if self._ended:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = b"".join(self._received)
        self._received.clear()
        if self._size > TUNNEL_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()
        self._size = 0
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
