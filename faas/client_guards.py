"""The part of `faas.client.Client` that is about usage plans and maintenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json


class GuardCalls:
    """Names are `name` or `name.namespace`."""

    async def plans(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/plans", "plans", {"namespace": namespace})

    async def put_plan(self: Calls, name: str, wish: Mapping[str, Any]) -> Json:
        """`wish`: `rate` and `burst`, `quota` and `period`, or both; `functions`, `apis`."""
        return await self._object("PUT", f"/v1/plans/{quote(name, safe='')}", body=dict(wish))

    async def delete_plan(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/plans/{quote(name, safe='')}")

    async def plan_usage(self: Calls, name: str, key: str = "") -> Json:
        return await self._object("GET", f"/v1/plans/{quote(name, safe='')}/usage", params={"key": key} if key else {})

    async def maintenance(self: Calls) -> list[Json]:
        return await self._list("/v1/maintenance", "maintenance")

    async def begin_maintenance(self: Calls, name: str, wish: Mapping[str, Any]) -> Json:
        """`name` "*": of everything. `wish`: `message`, `retry_after`."""
        return await self._object("PUT", f"/v1/maintenance/{quote(name, safe='*')}", body=dict(wish))

    async def end_maintenance(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/maintenance/{quote(name, safe='*')}")
