"""Our own endpoints, below `/v2/_faas/` (distribution-spec, "API extensions"). Each noun has its own; here is what
stands for none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.web import read_body
from registry.errors import RegistryError
from registry.requests import administrator, caller_of, refuse
from registry.service import Registry

OwnEndpoint = Callable[[web.Request, Registry], Awaitable[web.StreamResponse]]
BODY_BYTES = 65_536
NAME = "what the registry does beside the spec: garbage collection, policies, and what stands in its README"


async def json_of(request: web.Request, *known: str) -> dict[str, Any]:
    """The body: an object with no other keys than `known`. Raises a 400 that says what is wrong."""
    try:
        body = json.loads(await read_body(request, BODY_BYTES))
    except (ValueError, RecursionError):
        raise bad("the body must be a JSON object") from None
    if not isinstance(body, dict):
        raise bad("the body must be a JSON object")
    for key in body:
        if key not in known:
            raise bad(f"unknown key {key[:64]!r}; known are {', '.join(known)}")
    return body


def bad(words: str) -> RegistryError:
    """A request that cannot be carried out as it is written."""
    return RegistryError("UNSUPPORTED", words, status=400)


def discovery(paths: Iterable[str]) -> OwnEndpoint:
    """The answer to "which extensions are here" (extensions/_oci.md), from the paths of all endpoints."""
    endpoints = sorted({re.sub(r"{(\w+)(:[^}]*)?}", r"<\1>", path.removeprefix("/v2/")) for path in paths})
    listed = {"name": "_faas", "description": NAME, "url": "registry/README.md", "endpoints": endpoints}

    async def discover(request: web.Request, registry: Registry) -> web.StreamResponse:
        caller = await caller_of(request, registry)
        if not caller.principal.may(Permission.PULL):
            refuse(request, caller, "this role may not pull")
        return web.json_response({"extensions": [listed]})

    return discover


def is_dry(request: web.Request) -> bool:
    """Whether the request only asks what it would do."""
    return request.query.get("dry-run", "") in ("1", "true")


async def collect(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Collect garbage now; `?dry-run=1` says what that would take. For an administrator of everything."""
    await administrator(request, registry, ALL_NAMESPACES)
    found = (await registry.preview()).counts if is_dry(request) else await registry.collect()
    return web.json_response(asdict(found))


async def scrubbed(request: web.Request, registry: Registry) -> web.StreamResponse:
    """What the scrub has found. For an administrator of everything."""
    await administrator(request, registry, ALL_NAMESPACES)
    return web.json_response(await registry.scrub.status())


async def scrub(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Check all that is stored now; the GET tells how far that is. For an administrator of everything."""
    await administrator(request, registry, ALL_NAMESPACES)
    registry.scrub.ask()
    return web.json_response(await registry.scrub.status(), status=202)


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (
    ("POST", "/v2/_faas/gc", collect),
    ("GET", "/v2/_faas/scrub", scrubbed),
    ("POST", "/v2/_faas/scrub", scrub),
)
