"""The part of `faas.client.Client` that is about secrets. No answer has a value in it."""

from __future__ import annotations

from urllib.parse import quote

from faas.client_usage import Calls, Json

RENEWAL_SECONDS = 1200.0  # where instances are replaced: an init may take 900 s


class SecretCalls:
    """Names are `name` or `name.namespace`."""

    async def secrets(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/secrets", "secrets", {"namespace": namespace})

    async def set_secret(self: Calls, name: str, value: str, *, now: bool = False) -> Json:
        """`now`: instances that have the old value are replaced (`replaced`); those that are `kept` say why."""
        body = {"value": value, "now": now}
        return await self._object("PUT", f"/v1/secrets/{quote(name, safe='')}", body=body, seconds=RENEWAL_SECONDS)

    async def delete_secret(self: Calls, name: str, *, force: bool = False) -> None:
        await self._json("DELETE", f"/v1/secrets/{quote(name, safe='')}" + ("?force=1" if force else ""))

    async def rotate_secrets_key(self: Calls) -> int:
        """How many were sealed anew."""
        return int((await self._object("POST", "/v1/secrets-key/rotate", body={}))["secrets"])
