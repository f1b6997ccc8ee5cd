"""The part of `faas.client.Client` that is about usage and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

Json = dict[str, Any]


class Calls(Protocol):
    """What `Client` gives its parts."""

    async def _json(self, method: str, path: str, *, body: Any = None, payload: bytes | None = None) -> Any: ...

    async def _object(self, method: str, path: str, **options: Any) -> Json: ...

    async def _list(self, path: str, key: str, params: Mapping[str, str] | None = None) -> list[Json]: ...


class UsageCalls:
    """Names are `name` or `name.namespace`."""

    async def usage(self: Calls, **asked: str) -> Json:
        """`asked`: `month` (2030-01), `since` (Unix seconds), `by`, `function`, `namespace`; each may be left out."""
        return await self._object("GET", "/v1/usage", params=asked)

    async def budgets(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/budgets", "budgets", {"namespace": namespace})

    async def put_budget(self: Calls, name: str, wish: Mapping[str, Any]) -> Json:
        """`wish`: one of `cost`, `gb_seconds`, `requests`; `function`, `warn`, `throttle`."""
        return await self._object("PUT", f"/v1/budgets/{quote(name, safe='')}", body=dict(wish))

    async def delete_budget(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/budgets/{quote(name, safe='')}")
