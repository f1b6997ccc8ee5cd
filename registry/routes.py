"""The endpoints of distribution-spec 1.1 by path and method. Repositories may be called like routes
(`a/blobs/uploads`), so paths are read from the right.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web

from faas.auth import Permission
from faas.oci.reference import REPOSITORY_LENGTH, is_repository
from registry import blobs, manifests, referrers, tags, uploads
from registry.errors import RegistryError
from registry.requests import ROUTE, only
from registry.service import Registry
from registry.upstream.upstream import Upstreams

SOURCE = web.RequestKey("source", str)  # the host whose images are asked for here

Endpoint = Callable[[web.Request, Registry, str, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern` finds (name, argument) in the path behind /v2/; one endpoint per method."""

    label: str  # as metrics call it
    pattern: re.Pattern[str]
    endpoints: dict[str, tuple[Permission, Endpoint]]


class Found(NamedTuple):
    """What serves a request, and what it asks for."""

    repository: str
    argument: str
    permission: Permission
    endpoint: Endpoint


PULL, PUSH, DELETE = Permission.PULL, Permission.PUSH, Permission.DELETE_IMAGE
ROUTES = (
    Route(
        "uploads",
        re.compile(r"(.+)/blobs/uploads/([^/]+)"),
        {
            "GET": (PUSH, uploads.status),
            "PATCH": (PUSH, uploads.append),
            "PUT": (PUSH, uploads.finish),
            "DELETE": (PUSH, uploads.cancel),
        },
    ),
    Route("uploads", re.compile(r"(.+)/blobs/uploads/?()"), {"POST": (PUSH, uploads.begin)}),
    Route(
        "blobs",
        re.compile(r"(.+)/blobs/([^/]+)"),
        {"GET": (PULL, blobs.get), "HEAD": (PULL, blobs.get), "DELETE": (DELETE, blobs.delete)},
    ),
    Route(
        "manifests",
        re.compile(r"(.+)/manifests/([^/]+)"),
        {
            "GET": (PULL, manifests.get),
            "HEAD": (PULL, manifests.get),
            "PUT": (PUSH, manifests.put),
            "DELETE": (DELETE, manifests.delete),
        },
    ),
    Route("tags", re.compile(r"(.+)/tags/list()"), {"GET": (PULL, tags.listed)}),
    Route("referrers", re.compile(r"(.+)/referrers/([^/]+)"), {"GET": (PULL, referrers.listed)}),
)


def find(request: web.Request, upstreams: Upstreams) -> Found:
    """Raises a 404 for no route, NAME_INVALID, a 405."""
    path = unquote(request.rel_url.raw_path.removeprefix("/v2/"), errors="strict") if _sane(request) else ""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match is None:
            continue
        request[ROUTE] = route.label
        name, argument = match[1], match[2]
        if not is_repository(name):
            raise RegistryError("NAME_INVALID", detail=name[:REPOSITORY_LENGTH])
        only(request, *route.endpoints)
        permission, endpoint = route.endpoints[request.method]
        return Found(_meant(request, upstreams, name) if permission is PULL else name, argument, permission, endpoint)
    raise RegistryError("NAME_UNKNOWN", "no such endpoint", status=404)


def _sane(request: web.Request) -> bool:
    """Paths that are no text, or carry a NUL, name nothing."""
    try:
        return "\x00" not in unquote(request.rel_url.raw_path, errors="strict")
    except UnicodeDecodeError:
        return False


def _meant(request: web.Request, upstreams: Upstreams, name: str) -> str:
    """The repository here that `?ns=` makes of `name`. One that names no upstream is not used, and not answered."""
    source = request.query.get("ns")
    meant = upstreams.meant(name, source)
    if meant is None:
        return name
    if len(meant) > REPOSITORY_LENGTH:
        raise RegistryError("NAME_INVALID", detail=meant[:REPOSITORY_LENGTH])
    request[SOURCE] = str(source)
    return meant


async def say_source(request: web.Request, response: web.StreamResponse) -> None:
    """distribution-spec, "Registry Proxying": that `?ns=` was heeded."""
    if SOURCE in request:
        response.headers["OCI-Namespace"] = request[SOURCE]
