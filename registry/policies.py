"""Policies over HTTP: `GET /v2/_faas/policies`, `PUT` and `DELETE /v2/_faas/policies/<pattern>`."""

from __future__ import annotations

from dataclasses import asdict, fields

from aiohttp import web

from registry.by_pattern import administered, check_room, of_caller
from registry.errors import RegistryError
from registry.extension import OwnEndpoint, bad, json_of
from registry.index.policies import Policy
from registry.service import Registry

KEYS = tuple(field.name for field in fields(Policy))


async def listed(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Those whose pattern the caller administers."""
    mine = await of_caller(request, registry, registry.policies)
    return web.json_response({"policies": [{"pattern": pattern, **asdict(policy)} for pattern, policy in mine.items()]})


async def put(request: web.Request, registry: Registry) -> web.StreamResponse:
    """`{"public": false, "sparse": false}`; what is not written is as it is by default."""
    pattern = await administered(request, registry)
    check_room(registry, registry.policies, pattern)
    body = await json_of(request, *KEYS)
    if not all(isinstance(value, bool) for value in body.values()):
        raise bad("public and sparse must be true or false")
    await registry.policies.put(pattern, Policy(**body))
    return web.Response(status=204)


async def remove(request: web.Request, registry: Registry) -> web.StreamResponse:
    pattern = await administered(request, registry)
    if not await registry.policies.remove(pattern):
        raise RegistryError("NAME_UNKNOWN", f"there is no policy for {pattern}")
    return web.Response(status=204)


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (
    ("GET", "/v2/_faas/policies", listed),
    ("PUT", "/v2/_faas/policies/{pattern:.+}", put),
    ("DELETE", "/v2/_faas/policies/{pattern:.+}", remove),
)
