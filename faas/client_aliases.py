"""The part of `faas.client.Client` that is about aliases with two revisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json


class AliasCalls:
    """Names are `name` or `name.namespace`."""

    async def put_alias(self: Calls, name: str, alias: str, wish: Mapping[str, Any]) -> Json:
        """`wish`: `revision`, `weights` (`{"v7": 10}`; `{}` for one revision), `sticky`, `override`, `rollback`; or
        `promote` alone. Returns the alias as it is then."""
        path = f"/v1/functions/{quote(name, safe='')}/aliases/{quote(alias, safe='')}"
        return await self._object("PUT", path, body=dict(wish), function=name)
