"""The part of `faas.client.Client` that is about `faas dev`. `session` is the same in all calls of one command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from faas.client_usage import Calls, Json

DEPLOY_SECONDS = 1200.0  # an init may take 900 s


class DevCalls:
    """Names are `name` or `name.namespace` of the dev function."""

    async def dev_functions(self: Calls) -> list[Json]:
        return await self._list("/v1/dev", "dev")

    async def dev_open(self: Calls, name: str, session: str, spec: Mapping[str, Any], image: str) -> Json:
        """`image`: what code is put on, or for a spec without a runtime all of it, which is deployed then."""
        body = {"spec": dict(spec), "image": image}
        return await self._object("PUT", _path(name, "", session), body=body, seconds=DEPLOY_SECONDS, function=name)

    async def dev_code(self: Calls, name: str, session: str, code: bytes) -> Json:
        """`code`: a layer, compressed by gzip. Raises InitFailed where it does not start; it is what calls run then."""
        path = _path(name, "/code", session)
        return await self._object("PUT", path, payload=code, seconds=DEPLOY_SECONDS, function=name)

    async def dev_beat(self: Calls, name: str, session: str) -> None:
        await self._json("POST", _path(name, "/beat", session))

    async def dev_close(self: Calls, name: str, session: str) -> None:
        await self._json("DELETE", _path(name, "", session))


def _path(name: str, rest: str, session: str) -> str:
    return f"/v1/dev/{quote(name, safe='')}{rest}?session={session}"
