"""Carries the bytes of an upgraded connection between a client and an http function, both ways, and bounds it.

What is in them is the function's matter. Ours: back-pressure, how long nothing may come, how long it may last at all,
and, where the function's rules say so, how large the client's messages may be.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.errors import FaasError, Forbidden
from faas.leases import HttpResponse, Tunnel
from faas.logins import watching
from faas.protocol import RevisionKey
from faas.rules.websocket import WebSocketRule
from faas.web import PROGRESS_SECONDS, REQUEST_ID_HEADER
from gateway.edge.websocket.frames import FrameMeter
from gateway.headers import outbound

TUNNEL_BYTES = 262_144  # read from a client ahead of what the function takes


def check_origin(request: web.Request, rule: WebSocketRule) -> None:
    """Raises Forbidden for a page that may not connect: a browser sends its user's cookies whoever wrote the page."""
    origins = request.headers.getall(hdrs.ORIGIN, ())
    if len(origins) > 1 or not rule.admits(origins[0] if origins else None):
        raise Forbidden("pages of this origin may not connect here")


async def carry(
    request: web.Request,
    response: HttpResponse,
    tunnel: Tunnel,
    request_id: str,
    rule: WebSocketRule,
    key: RevisionKey,
) -> web.StreamResponse:
    """Answer 101 and carry bytes both ways until either side ends, or `rule` or the end of its caller's right to invoke
    `key` ends it."""
    headers = outbound(response.headers)
    headers[REQUEST_ID_HEADER] = request_id
    headers[hdrs.CONNECTION] = "Upgrade"
    headers[hdrs.UPGRADE] = "websocket"
    answer = web.StreamResponse(status=101, headers=headers)
    answer.force_close()
    await answer.prepare(request)
    if request.transport is None:
        return answer
    client = ClientBytes(request.transport, rule)
    request.protocol.set_parser(client)  # type: ignore[arg-type] # feed_data and feed_eof are all it uses
    tasks = [
        asyncio.create_task(_to_function(client, tunnel)),
        asyncio.create_task(_to_client(tunnel, answer, client)),
        asyncio.create_task(_bounded(client, rule)),
    ]
    try:
        with watching(request, Permission.INVOKE, key.namespace, key.function, tasks[0].cancel):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(OSError, FaasError):
            await tunnel.close()
        if request.transport is not None:
            request.transport.close()
    return answer


async def _to_function(client: ClientBytes, tunnel: Tunnel) -> None:
    while data := await client.read():
        # While reading pauses, a client that has gone is not seen: without a deadline the slot would stay taken.
        async with asyncio.timeout(PROGRESS_SECONDS):
            await tunnel.write(data)


async def _to_client(tunnel: Tunnel, answer: web.StreamResponse, client: ClientBytes) -> None:
    while data := await tunnel.read():
        client.seen()
        await answer.write(data)


async def _bounded(client: ClientBytes, rule: WebSocketRule) -> None:
    """Until nothing came for `idle`, or all of it took `lifetime`."""
    clock = asyncio.get_running_loop().time
    end = clock() + rule.lifetime.total_seconds()
    while True:
        left = min(client.last + rule.idle.total_seconds(), end) - clock()
        if left <= 0:
            return
        await asyncio.sleep(left)


class ClientBytes:
    """What a hijacked connection receives, instead of aiohttp's parser; reading pauses where nobody takes it."""

    def __init__(self, transport: asyncio.Transport, rule: WebSocketRule) -> None:
        self._transport = transport
        self._meter = FrameMeter(rule.max_message, rule.max_frame) if rule.max_message or rule.max_frame else None
        self._clock = asyncio.get_running_loop().time
        self._received: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None
        self.last = self._clock()  # when a byte last went either way

    def seen(self) -> None:
        self.last = self._clock()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.seen()
        if self._meter is not None and not self._meter.within(data):
            self.feed_eof()
            self._transport.pause_reading()
            return False, b""
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
        if self._size > TUNNEL_BYTES and not self._ended and not self._transport.is_closing():
            self._transport.resume_reading()
        self._size = 0
        return data

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
