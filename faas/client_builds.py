"""The part of `faas.client.Client` that is about builds on the server: a WebSocket to the sandbox of one build."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import aiohttp

from faas.client_errors import error_of
from faas.errors import Unavailable

MESSAGE_BYTES = 2 << 20
CONNECT_SECONDS = 5.0
TURN_SECONDS = 1500.0  # for those before us, and for the image of the sandbox, which may have to be made
READY = '{"ready": true}'  # the server's one text that is no error: the builder listens
QUIET_SECONDS = 660.0  # a build may be silent as long as it may take


class Calls(Protocol):
    """What `Client` gives its parts."""

    url: str
    _session: aiohttp.ClientSession | None


class BuildChannel:
    """Implements `faas.build.messages.Channel`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def send(self, kind: bytes, content: bytes) -> None:
        try:
            await self._socket.send_bytes(kind + content)
        except (aiohttp.ClientError, ConnectionError):
            while True:  # it says why, behind what the builder said before
                await self.receive(CONNECT_SECONDS)

    async def receive(self, seconds: float = QUIET_SECONDS) -> tuple[bytes, bytes]:
        try:
            message = await self._socket.receive(timeout=seconds)
        except TimeoutError:
            raise Unavailable(f"the build said nothing for {seconds:g} s") from None
        if message.type is aiohttp.WSMsgType.BINARY and message.data:
            return message.data[:1], message.data[1:]
        if message.type is aiohttp.WSMsgType.TEXT:
            if message.data == READY:
                return b"", b""
            raise error_of(500, {}, message.data.encode(), "the build", "")
        raise Unavailable("the server has ended the build", hint="try again")


class BuildCalls:
    """Wheels of what has none."""

    @asynccontextmanager
    async def build(self: Calls, runtime: str) -> AsyncIterator[BuildChannel]:
        """A sandbox that builds for `runtime` (python3.11), ended with the block. Raises any of `faas.errors`."""
        assert self._session is not None, "a Client is a context manager"
        timeout = aiohttp.ClientWSTimeout(ws_close=CONNECT_SECONDS)
        try:
            async with self._session.ws_connect(
                f"{self.url}/v1/builds", params={"runtime": runtime}, max_msg_size=MESSAGE_BYTES, timeout=timeout
            ) as socket:
                channel = BuildChannel(socket)
                await channel.receive(TURN_SECONDS)
                yield channel
        except aiohttp.WSServerHandshakeError as error:
            raise error_of(error.status, error.headers or {}, b"", f"{self.url}/v1/builds", "") from error
        except aiohttp.ClientError as error:
            raise Unavailable(f"the connection for a build broke: {error}") from error
