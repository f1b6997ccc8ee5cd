"""The registry over HTTP (distribution-spec 1.1): one door, which finds the endpoint, checks who asks, and answers
errors in the spec's form. Repositories may be called like routes, so paths are read from the right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.errors import FaasError
from faas.oci.reference import REPOSITORY_LENGTH, REPOSITORY_PATTERN
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, doubt_about, new_request_id, waits
from registry import (
    blobs,
    catalog,
    extension,
    images,
    manifests,
    policies,
    quotas,
    referrers,
    retention,
    tags,
    tokens,
    uploads,
)
from registry.access import STRANGER
from registry.errors import RegistryError
from registry.extension import OwnEndpoint
from registry.requests import CALLER, LACKING, ROUTE, SCOPE, caller_of, refuse
from registry.service import Registry

log = logging.getLogger("registry")

REGISTRY = web.AppKey("registry", Registry)
REPOSITORY = web.RequestKey("repository", str)
SOURCE = web.RequestKey("source", str)  # the host whose images are asked for here
GONE = 499  # nginx's number for a client that closed the connection
API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Endpoint = Callable[[web.Request, Registry, str, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern` finds (name, argument) in the path behind /v2/; one endpoint per method."""

    label: str
    pattern: re.Pattern[str]
    endpoints: dict[str, tuple[Permission, Endpoint]]


OWN = (*extension.ENDPOINTS, *images.ENDPOINTS, *policies.ENDPOINTS, *quotas.ENDPOINTS, *retention.ENDPOINTS)
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


def create_app(registry: Registry) -> web.Application:
    app = web.Application(middlewares=[_errors], client_max_size=0)
    app[REGISTRY] = registry
    app.router.add_route("*", "/v2/", _root)
    app.router.add_route("*", "/v2", _root)
    app.router.add_route("*", "/v2/_catalog", _catalog)
    discover = extension.discovery(path for _, path, _ in OWN)
    app.router.add_route("*", "/v2/_oci/ext/discover", _ours({"GET": discover, "HEAD": discover}))
    ours: dict[str, dict[str, OwnEndpoint]] = {}
    for method, path, endpoint in OWN:
        ours.setdefault(path, {})[method] = endpoint
    for path, methods in ours.items():
        app.router.add_route("*", path, _ours(methods))
    app.router.add_get(tokens.PATH, _token, allow_head=False)
    app.router.add_post(tokens.PATH, _token)
    app.router.add_route("*", "/v2/{path:.*}", _dispatch)
    app.on_response_prepare.append(_say_source)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in the spec's form, never a 500 for bad input; each request is counted by its route."""
    registry = request.app[REGISTRY]
    request[REQUEST_ID] = new_request_id()
    doubt = doubt_about(request)
    try:
        if doubt:
            raise RegistryError("UNSUPPORTED", doubt, status=400)
        response = await handler(request)
    except RegistryError as error:
        response = web.json_response(error.body(), status=error.status, headers=error.headers)
        if doubt:
            response.force_close()
    except FaasError as error:
        code = {400: "SIZE_INVALID", 401: "UNAUTHORIZED", 429: "TOOMANYREQUESTS"}.get(error.status, "DENIED")
        if error.status >= 500:
            log.error("request failed: %s", error, extra={"request_id": request[REQUEST_ID]})
        body = RegistryError(code, error.message).body()
        response = web.json_response(body, status=error.status, headers=waits(error))
    except web.HTTPException as error:
        code = "UNSUPPORTED" if error.status == 405 else "NAME_UNKNOWN"
        allowed = {name: value for name, value in error.headers.items() if name == hdrs.ALLOW}
        response = web.json_response(RegistryError(code, error.reason).body(), status=error.status, headers=allowed)
    except ConnectionError:  # the client has gone, or was cut off: nobody hears an answer
        if request.transport is not None:
            request.transport.abort()
        response = web.Response(status=GONE)
    except TimeoutError:
        raise
    except OSError as error:
        log.error("storage failed: %s", error, extra={"request_id": request[REQUEST_ID]})
        response = web.json_response(RegistryError("DENIED", f"storage failed: {error.strerror}").body(), status=507)
    except Exception:
        log.exception("request failed", extra={"request_id": request[REQUEST_ID]})
        words = f"our fault; it is logged with request id {request[REQUEST_ID]}"
        response = web.json_response(RegistryError("UNSUPPORTED", words).body(), status=500)
    if response.status == 401:
        asked = tokens.challenge(request, registry, request.get(SCOPE, ""), request.get(LACKING, ""))
        response.headers.update({hdrs.WWW_AUTHENTICATE: asked, **API_VERSION})
    label = request.get(ROUTE, "other")
    registry.metrics.registry_requests.labels(_method(request.method), label, str(response.status)).inc()
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    return response


def _method(method: str) -> str:
    """A label of bounded variety: methods are the client's words."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "OTHER"


async def _root(request: web.Request) -> web.StreamResponse:
    """end-1. Asks for a login, even where something is public, since clients look here for how to log in."""
    request[ROUTE] = "root"
    if await caller_of(request, request.app[REGISTRY]) == STRANGER:
        raise RegistryError("UNAUTHORIZED")
    only(request, "GET", "HEAD")
    return web.json_response({}, headers=API_VERSION)


async def _token(request: web.Request) -> web.StreamResponse:
    request[ROUTE] = "token"
    return await tokens.issue(request, request.app[REGISTRY])


async def _catalog(request: web.Request) -> web.StreamResponse:
    request[ROUTE] = "catalog"
    caller = await catalog.reader(request, request.app[REGISTRY])
    only(request, "GET", "HEAD")
    return await catalog.listed(request, request.app[REGISTRY], caller)


def _ours(methods: dict[str, OwnEndpoint]) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        request[ROUTE] = "extension"
        if request.method not in methods and (await caller_of(request, request.app[REGISTRY])).is_anonymous:
            raise RegistryError("UNAUTHORIZED")
        only(request, *methods)
        return await methods[request.method](request, request.app[REGISTRY])

    return answer


def only(request: web.Request, *methods: str) -> None:
    """Raises a 405 for any other method."""
    if request.method not in methods:
        raise RegistryError("UNSUPPORTED", headers={hdrs.ALLOW: ", ".join(methods)})


async def _dispatch(request: web.Request) -> web.StreamResponse:
    caller = request[CALLER] = await caller_of(request, request.app[REGISTRY])
    try:
        name, argument, permission, endpoint = _find(request)
    except RegistryError:
        if caller.is_anonymous:  # strangers learn nothing of what is served here, nor how
            raise RegistryError("UNAUTHORIZED") from None
        raise
    request[SCOPE] = tokens.scope_of(name, permission)
    if not request.app[REGISTRY].may(caller, permission, name):
        refuse(
            request,
            caller,
            f"the {caller.principal.role.value} {caller.principal.name} may not {permission.value} {name}",
        )
    repository = request.app[REGISTRY].cache.upstreams.canonical(name)
    return await endpoint(request, request.app[REGISTRY], repository, argument)


def _meant(request: web.Request, name: str) -> str:
    """The repository here that `?ns=` makes of `name`. One that names no upstream is not used, and not answered."""
    source = request.query.get("ns")
    meant = request.app[REGISTRY].cache.upstreams.meant(name, source)
    if meant is None:
        return name
    if len(meant) > REPOSITORY_LENGTH:
        raise RegistryError("NAME_INVALID", detail=meant[:REPOSITORY_LENGTH])
    request[SOURCE] = str(source)
    return meant


async def _say_source(request: web.Request, response: web.StreamResponse) -> None:
    """distribution-spec, "Registry Proxying": that `?ns=` was heeded."""
    if SOURCE in request:
        response.headers["OCI-Namespace"] = request[SOURCE]


def _find(request: web.Request) -> tuple[str, str, Permission, Endpoint]:
    """Repository, argument, and what serves them. Raises a 404 for no route, NAME_INVALID, a 405."""
    path = unquote(request.rel_url.raw_path.removeprefix("/v2/"), errors="strict") if _sane(request) else ""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match is None:
            continue
        request[ROUTE] = route.label
        name, argument = match[1], match[2]
        if len(name) > REPOSITORY_LENGTH or not REPOSITORY_PATTERN.fullmatch(name):
            raise RegistryError("NAME_INVALID", detail=name[:REPOSITORY_LENGTH])
        only(request, *route.endpoints)
        permission, endpoint = route.endpoints[request.method]
        return _meant(request, name) if permission is PULL else name, argument, permission, endpoint
    raise RegistryError("NAME_UNKNOWN", "no such endpoint", status=404)


def _sane(request: web.Request) -> bool:
    """Paths that are no text, or carry a NUL, name nothing."""
    try:
        return "\x00" not in unquote(request.rel_url.raw_path, errors="strict")
    except UnicodeDecodeError:
        return False
