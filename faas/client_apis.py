"""The part of `faas.client.Client` that is about APIs and routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json

DOCUMENT_SECONDS = 120.0  # thousands of routes


class ApiCalls:
    """Names are `name` or `name.namespace`."""

    async def apis(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/apis", "apis", {"namespace": namespace})

    async def api(self: Calls, name: str) -> Json:
        """With the routes that are its own."""
        return await self._object("GET", _api(name))

    async def put_api(self: Calls, name: str, wish: Mapping[str, Any]) -> Json:
        """`wish`: `hosts`, `base_path`, `stages`, `routes`: what is left out is empty."""
        return await self._object("PUT", _api(name), body=dict(wish), seconds=DOCUMENT_SECONDS)

    async def delete_api(self: Calls, name: str) -> None:
        await self._json("DELETE", _api(name))

    async def api_document(self: Calls, name: str) -> Json:
        """Its OpenAPI document."""
        return await self._object("GET", f"{_api(name)}/openapi.json", seconds=DOCUMENT_SECONDS)

    async def put_api_document(self: Calls, name: str, document: Mapping[str, Any]) -> Json:
        """Make its routes those of an OpenAPI document; the API, and `warnings`."""
        return await self._object("PUT", f"{_api(name)}/openapi.json", body=dict(document), seconds=DOCUMENT_SECONDS)

    async def routes(self: Calls, namespace: str = "") -> list[Json]:
        """Of all APIs and functions."""
        return await self._list("/v1/routes", "routes", {"namespace": namespace})

    async def api_routes(self: Calls, api: str) -> list[Json]:
        return await self._list(f"{_api(api)}/routes", "routes")

    async def add_route(self: Calls, api: str, route: Mapping[str, Any]) -> Json:
        return await self._object("POST", f"{_api(api)}/routes", body=dict(route))

    async def delete_route(self: Calls, api: str, route_id: str) -> None:
        await self._json("DELETE", f"{_api(api)}/routes/{quote(route_id, safe='')}")


def _api(name: str) -> str:
    return f"/v1/apis/{quote(name, safe='')}"
