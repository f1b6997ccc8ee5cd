"""The part of `faas.client.Client` that is about API keys."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json


class KeyCalls:
    """Names are `name` or `name.namespace`."""

    async def keys(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/keys", "keys", {"namespace": namespace})

    async def create_key(self: Calls, name: str, **wish: Any) -> Json:
        """The key (`key`), told this once. `wish`: `namespace`, `functions`, `plan`, `expires` ("90d")."""
        return await self._object("POST", "/v1/keys", body={"name": name, **wish})

    async def rotate_key(self: Calls, name: str, overlap: str) -> Json:
        """A new secret (`key`), told this once; the old one opens for `overlap` ("24h") more."""
        return await self._object("POST", f"/v1/keys/{quote(name, safe='')}/rotate", body={"overlap": overlap})

    async def put_key_plan(self: Calls, name: str, plan: str) -> Json:
        """`plan`: "" for none."""
        return await self._object("PATCH", f"/v1/keys/{quote(name, safe='')}", body={"plan": plan})

    async def revoke_key(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/keys/{quote(name, safe='')}")
