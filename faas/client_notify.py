"""The part of `faas.client.Client` that is about notifications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json

SEND_SECONDS = 60.0  # a mail server has 30


class NotifyCalls:
    """Names are `name` or `name.namespace`."""

    async def notifications(self: Calls, namespace: str = "") -> list[Json]:
        return await self._list("/v1/notifications", "targets", {"namespace": namespace})

    async def put_notification(self: Calls, name: str, wish: Mapping[str, Any]) -> Json:
        """`wish`: `webhook` or `mail`, and `on`, `everywhere`, `errors`, `repeat`. `secret` is told once."""
        return await self._object("PUT", _path(name), body=dict(wish))

    async def delete_notification(self: Calls, name: str) -> None:
        await self._json("DELETE", _path(name))

    async def test_notification(self: Calls, name: str) -> None:
        await self._object("POST", f"{_path(name)}/test", body={}, seconds=SEND_SECONDS)


def _path(name: str) -> str:
    return f"/v1/notifications/{quote(name, safe='')}"
