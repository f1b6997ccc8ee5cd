"""The part of `faas.client.Client` that is about users, their tokens, and who changed what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json


class UserCalls:
    """A user's token is called `NAME@USER`."""

    async def whoami(self: Calls) -> Json:
        """`{"name", "token", "is_user", "roles", "narrowed", "expires_at"}`."""
        return await self._object("GET", "/v1/whoami")

    async def users(self: Calls) -> list[Json]:
        return await self._list("/v1/users", "users")

    async def user(self: Calls, name: str) -> Json:
        return await self._object("GET", f"/v1/users/{quote(name, safe='')}")

    async def create_user(self: Calls, name: str, roles: Mapping[str, str]) -> Json:
        """`roles`: namespace ("*" for all) → role."""
        return await self._object("POST", "/v1/users", body={"name": name, "roles": dict(roles)})

    async def set_roles(self: Calls, name: str, roles: Mapping[str, str | None]) -> Json:
        """None takes a role away; those of other namespaces stay."""
        return await self._object("PATCH", f"/v1/users/{quote(name, safe='')}", body={"roles": dict(roles)})

    async def remove_user(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/users/{quote(name, safe='')}")

    async def tokens(self: Calls) -> list[Json]:
        """One's own, and those that one manages."""
        return await self._list("/v1/tokens", "tokens")

    async def create_token(self: Calls, name: str, **wish: Any) -> Json:
        """The new token (`token`), told this once. `wish`: `role`, `namespace`, `functions`, `repositories`, `user`,
        `expires` ("90d")."""
        return await self._object("POST", "/v1/tokens", body={"name": name, **{k: v for k, v in wish.items() if v}})

    async def rotate_token(self: Calls, name: str, grace: str) -> Json:
        """A new token (`token`), told this once; the old one opens for `grace` ("1h") more."""
        return await self._object("POST", f"/v1/tokens/{quote(name, safe='')}/rotate", body={"grace": grace})

    async def revoke_token(self: Calls, name: str) -> None:
        await self._json("DELETE", f"/v1/tokens/{quote(name, safe='')}")

    async def audit(self: Calls, **asked: str) -> list[Json]:
        """Records, the oldest first. `asked`: `since`, `until` (Unix seconds), `by`, `action`, `object`, `namespace`,
        `after` (a record's number), `order` (oldest, newest), `limit`."""
        return list((await self._object("GET", "/v1/audit", params=asked)).get("records") or ())

    async def verify_audit(self: Calls, head: str = "") -> Json:
        """`{"ok", "broken", "count", "cut", "head"}`. `head`: SEQ:HASH of an earlier check."""
        return await self._object("GET", "/v1/audit/verify", params={"head": head}, seconds=VERIFY_SECONDS)


VERIFY_SECONDS = 300.0  # a million records
