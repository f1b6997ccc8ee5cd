"""Policies over HTTP: `GET /v2/_faas/policies`, `PUT` and `DELETE /v2/_faas/policies/<pattern>`."""

from __future__ import annotations

from dataclasses import asdict, fields

from aiohttp import web

from faas import patterns
from faas.auth import ALL_NAMESPACES, Permission
from registry.errors import RegistryError
from registry.extension import OwnEndpoint, bad, json_of
from registry.index.policies import Policy
from registry.requests import administrator
from registry.service import Registry

KEYS = tuple(field.name for field in fields(Policy))


async def listed(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Those whose pattern the caller administers."""
    caller = await administrator(request, registry, None)
    every = registry.policies.all()
    mine = [pattern for pattern in every if caller.principal.may(Permission.ADMIN, within(registry, pattern))]
    return web.json_response({"policies": [{"pattern": pattern, **asdict(every[pattern])} for pattern in mine]})


async def put(request: web.Request, registry: Registry) -> web.StreamResponse:
    """`{"public": false, "sparse": false}`; what is not written is as it is by default."""
    pattern = await administered(request, registry)
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


async def administered(request: web.Request, registry: Registry) -> str:
    """The pattern in the path, where the caller administers every repository that it may fit."""
    pattern = request.match_info["pattern"]
    try:
        patterns.check(pattern)
    except ValueError as error:
        raise RegistryError("NAME_INVALID", f"the pattern must be {error}") from None
    await administrator(request, registry, within(registry, pattern))
    return pattern


def within(registry: Registry, pattern: str) -> str:
    """The namespace that one must administer to say what holds for the repositories of `pattern`. Copies of an
    upstream's belong to none, also where one is called as they are."""
    namespace = patterns.namespace_of(pattern)
    return ALL_NAMESPACES if namespace is None or registry.cache.upstreams.of(pattern) is not None else namespace


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (
    ("GET", "/v2/_faas/policies", listed),
    ("PUT", "/v2/_faas/policies/{pattern:.+}", put),
    ("DELETE", "/v2/_faas/policies/{pattern:.+}", remove),
)
