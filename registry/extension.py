"""Our own endpoints, below `/v2/_faas/` (distribution-spec, "API extensions"). Each noun has its own; here is what
stands for none of them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from faas.auth import ALL_NAMESPACES
from faas.web import read_body
from registry.errors import RegistryError
from registry.requests import administrator
from registry.service import Registry

OwnEndpoint = Callable[[web.Request, Registry], Awaitable[web.StreamResponse]]
BODY_BYTES = 65_536


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


async def collect(request: web.Request, registry: Registry) -> web.StreamResponse:
    """Collect garbage now; `?dry-run=1` says what that would take. For an administrator of everything."""
    await administrator(request, registry, ALL_NAMESPACES)
    dry = request.query.get("dry-run", "") in ("1", "true")
    return web.json_response(asdict(await registry.collect(dry_run=dry)))


ENDPOINTS: tuple[tuple[str, str, OwnEndpoint], ...] = (("POST", "/v2/_faas/gc", collect),)
