"""Quotas over HTTP: `GET /v2/_faas/quotas`, `PUT` and `DELETE /v2/_faas/quotas/<namespace>`; for an administrator of
everything. They are enforced by `Space`."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from aiohttp import web

from faas.auth import ALL_NAMESPACES
from faas.oci.reference import REPOSITORY_PATTERN
from registry.errors import RegistryError
from registry.extension import OwnEndpoint, bad, json_of
from registry.index.quotas import Quota, Usage
from registry.requests import administrator
from registry.service import Registry

KEYS = tuple(field.name for field in fields(Quota))
MOST_BYTES = 2**62  # what a row holds
NAMESPACE_LENGTH = 128


async def listed(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Every namespace that has a quota, or holds anything."""
    await administrator(request, registry, ALL_NAMESPACES)
    limits, used = registry.index.quotas.all(), await registry.index.quotas.usages()
    entries = []
    for namespace in sorted(limits.keys() | used.keys()):
        quota, usage = limits.get(namespace, Quota()), used.get(namespace, Usage())
        entries.append({"namespace": namespace, **asdict(quota), "used": asdict(usage)})
    return web.json_response({"quotas": entries})


async def put(request: web.Request, registry: Registry) -> web.StreamResponse:
    """`{"logical_bytes": 10737418240, "physical_bytes": null}`: at least one of them. What is there already stays."""
    namespace = await _administered(request, registry)
    body = await json_of(request, *KEYS)
    if not any(value is not None for value in body.values()):
        raise bad("a quota limits logical_bytes, physical_bytes or both; DELETE takes it away")
    for key, value in body.items():
        if not _is_size(value):
            raise bad(f"{key} must be a number of bytes up to {MOST_BYTES}, or null")
    await registry.index.quotas.put(namespace, Quota(**body))
    return web.Response(status=204)


async def remove(request: web.Request, registry: Registry) -> web.StreamResponse:
    namespace = await _administered(request, registry)
    if not await registry.index.quotas.remove(namespace):
        raise RegistryError("NAME_UNKNOWN", f"there is no quota for {namespace}")
    return web.Response(status=204)


def _is_size(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= MOST_BYTES)


async def _administered(request: web.Request, registry: Registry) -> str:
    await administrator(request, registry, ALL_NAMESPACES)
    namespace = request.match_info["namespace"]
    if len(namespace) > NAMESPACE_LENGTH or "/" in namespace or not REPOSITORY_PATTERN.fullmatch(namespace):
        raise RegistryError("NAME_INVALID", f"not a namespace: {namespace[:NAMESPACE_LENGTH]!r}")
    return namespace


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (
    ("GET", "/v2/_faas/quotas", listed),
    ("PUT", "/v2/_faas/quotas/{namespace:[^/]+}", put),
    ("DELETE", "/v2/_faas/quotas/{namespace:[^/]+}", remove),
)
