"""The part of `faas.client.Client` that is about WebSocket APIs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json


class WebSocketCalls:
    """Names are `name` or `name.namespace`; a connection is named by its id."""

    async def websockets(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/websockets", "websockets", {"namespace": namespace})

    async def websocket(self: Calls, name: str) -> Json:
        return await self._object("GET", f"/v1/websockets/{quote(name, safe='')}")

    async def put_websocket(self: Calls, name: str, definition: Mapping[str, Any]) -> Json:
        return await self._object("PUT", f"/v1/websockets/{quote(name, safe='')}", body=dict(definition))

    async def delete_websocket(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/websockets/{quote(name, safe='')}")

    async def websocket_connections(self: Calls, name: str) -> list[Json]:
        return await self._list(f"/v1/websockets/{quote(name, safe='')}/connections", "connections")

    async def send_to_connection(self: Calls, connection: str, payload: bytes) -> None:
        await self._json("POST", f"/@connections/{quote(connection, safe='')}", payload=payload)

    async def close_connection(self: Calls, connection: str) -> None:
        await self._json("DELETE", f"/@connections/{quote(connection, safe='')}")
