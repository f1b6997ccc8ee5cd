"""The part of `faas.client.Client` that opens terminals, and asks the server how it is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast
from urllib.parse import quote

import aiohttp

from faas.client_errors import Unreachable, error_of

Json = dict[str, Any]
BEAT_SECONDS = 20.0


class Calls(Protocol):
    """What `Client` gives its parts."""

    url: str
    _session: aiohttp.ClientSession | None

    async def _object(self, method: str, path: str, **options: Any) -> Json: ...

    async def _list(self, path: str, key: str, params: Mapping[str, str] | None = None) -> list[Json]: ...


class DebugCalls:
    """Names are `name` or `name.namespace`, with `:qualifier` where one is meant."""

    async def doctor(self: Calls) -> list[Json]:
        """`{"check", "state", "found", "fix"}` of each look that the server took at itself and its machine."""
        return list((await self._object("GET", "/v1/doctor", seconds=120)).get("findings") or ())

    @asynccontextmanager
    async def debug(self: Calls, name: str, wish: Mapping[str, Any]) -> AsyncIterator[DebugSession]:
        """A terminal in a throw-away instance; `wish` has the keys that `gateway.control.debug` tells of."""
        assert self._session is not None, "a Client is a context manager"
        path = f"/v1/functions/{quote(name, safe=':')}/debug"
        try:
            socket = await self._session.ws_connect(self.url + path, heartbeat=BEAT_SECONDS, max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            await self._object("GET", path, function=name)  # says why, as it does not to a handshake
            raise Unreachable(f"{self.url} answered {error.status} to a WebSocket handshake") from None
        except aiohttp.ClientConnectionError as error:
            hint = "is it running? see faas doctor"
            raise Unreachable(f"cannot reach the server at {self.url}: {error}", hint=hint) from None
        async with socket:
            await socket.send_str(json.dumps(dict(wish)))
            yield DebugSession(socket, name)


class DebugSession:
    """One session. Iterate for what the program writes; `ended` is there after its end."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, name: str) -> None:
        self._socket = socket
        self._name = name
        self.instance = ""
        self.ended: Json | None = None  # {"exit", "signal", "out_of_memory"}

    async def type(self, data: bytes) -> None:
        if not self._socket.closed:
            await self._socket.send_bytes(data)

    async def resize(self, columns: int, rows: int) -> None:
        if not self._socket.closed:
            await self._socket.send_str(json.dumps({"resize": [columns, rows]}))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises what the server said, Unreachable where the connection was lost."""
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                yield cast("bytes", message.data)
            elif message.type is aiohttp.WSMsgType.TEXT:
                told = json.loads(message.data)
                if "error" in told:
                    raise error_of(0, {}, message.data.encode(), self._socket._response.url.path, self._name)
                self.instance = told.get("instance", self.instance)
                if "exit" in told:
                    self.ended = told
                    return
        raise Unreachable("the connection to the server was lost", hint="the session is over; open another one")
