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
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, new_request_id
from registry import blobs, extension, manifests, policies, tokens, uploads
from registry.errors import RegistryError
from registry.extension import OwnEndpoint
from registry.requests import CALLER, caller_of, refuse
from registry.service import Registry

log = logging.getLogger("registry")

REGISTRY = web.AppKey("registry", Registry)
REPOSITORY = web.RequestKey("repository", str)
API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Endpoint = Callable[[web.Request, Registry, str, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern` finds (name, argument) in the path behind /v2/; one endpoint per method."""

    label: str
    pattern: re.Pattern[str]
    endpoints: dict[str, tuple[Permission, Endpoint]]


OWN = (*extension.ENDPOINTS, *policies.ENDPOINTS)
PULL, PUSH, DELETE = Permission.PULL, Permission.PUSH, Permission.DELETE_IMAGE
ROUTES = (
    Route(
        "uploads",
        re.compile(r"(.+)/blobs/uploads/([^/]*)"),
        {
            "POST": (PUSH, uploads.begin),
            "GET": (PUSH, uploads.status),
            "PATCH": (PUSH, uploads.append),
            "PUT": (PUSH, uploads.finish),
            "DELETE": (PUSH, uploads.cancel),
        },
    ),
    Route("uploads", re.compile(r"(.+)/blobs/uploads()"), {"POST": (PUSH, uploads.begin)}),
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
    Route("tags", re.compile(r"(.+)/tags/list()"), {"GET": (PULL, manifests.tags)}),
    Route("referrers", re.compile(r"(.+)/referrers/([^/]+)"), {"GET": (PULL, manifests.referrers)}),
)


def create_app(registry: Registry) -> web.Application:
    app = web.Application(middlewares=[_errors], client_max_size=0)
    app[REGISTRY] = registry
    app.router.add_route("*", "/v2/", _root)
    app.router.add_route("*", "/v2", _root)
    app.router.add_get("/v2/_catalog", _catalog)
    for method, path, endpoint in OWN:
        app.router.add_route(method, path, _ours(endpoint))
    app.router.add_get(tokens.PATH, _token, allow_head=False)
    app.router.add_post(tokens.PATH, _token)
    app.router.add_route("*", "/v2/{path:.*}", _dispatch)
    return app


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in the spec's form, never a 500 for bad input; each request is counted by its route."""
    registry = request.app[REGISTRY]
    request[REQUEST_ID] = new_request_id()
    try:
        response = await handler(request)
    except RegistryError as error:
        response = web.json_response(error.body(), status=error.status, headers=error.headers)
    except FaasError as error:
        code = {400: "SIZE_INVALID", 401: "UNAUTHORIZED"}.get(error.status, "DENIED")
        if error.status >= 500:
            log.error("request failed: %s", error, extra={"request_id": request[REQUEST_ID]})
        response = web.json_response(RegistryError(code, error.message).body(), status=error.status)
    except web.HTTPException as error:
        code = "UNSUPPORTED" if error.status == 405 else "NAME_UNKNOWN"
        response = web.json_response(RegistryError(code, error.reason).body(), status=error.status)
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        log.error("storage failed: %s", error, extra={"request_id": request[REQUEST_ID]})
        response = web.json_response(RegistryError("DENIED", f"storage failed: {error.strerror}").body(), status=507)
    except Exception:
        log.exception("request failed", extra={"request_id": request[REQUEST_ID]})
        words = f"our fault; it is logged with request id {request[REQUEST_ID]}"
        response = web.json_response(RegistryError("UNSUPPORTED", words).body(), status=500)
    if response.status == 401:
        asked = tokens.challenge(request, registry, request.get("scope", ""), request.get("lacking", ""))
        response.headers.update({hdrs.WWW_AUTHENTICATE: asked, **API_VERSION})
    label = request.get("route", "other")
    registry.metrics.registry_requests.labels(_method(request.method), label, str(response.status)).inc()
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    return response


def _method(method: str) -> str:
    """A label of bounded variety: methods are the client's words."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "OTHER"


async def _root(request: web.Request) -> web.StreamResponse:
    """end-1. Asks for a login, since clients look here for how to log in."""
    request["route"] = "root"
    if (await caller_of(request, request.app[REGISTRY])).is_anonymous:
        raise RegistryError("UNAUTHORIZED")
    return web.json_response({}, headers=API_VERSION)


async def _token(request: web.Request) -> web.StreamResponse:
    request["route"] = "token"
    return await tokens.issue(request, request.app[REGISTRY])


async def _catalog(request: web.Request) -> web.StreamResponse:
    """Docker's list of repositories: those that the caller may pull."""
    request["route"] = "catalog"
    caller = await caller_of(request, request.app[REGISTRY])
    if not caller.principal.may(Permission.PULL):
        refuse(request, caller, "this role may not pull")
    return await manifests.catalog(request, request.app[REGISTRY], caller.principal)


def _ours(endpoint: OwnEndpoint) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        request["route"] = "extension"
        return await endpoint(request, request.app[REGISTRY])

    return answer


async def _dispatch(request: web.Request) -> web.StreamResponse:
    path = unquote(request.rel_url.raw_path.removeprefix("/v2/"), errors="strict") if _sane(request) else ""
    for route in ROUTES:
        match = route.pattern.fullmatch(path)
        if match is None:
            continue
        request["route"] = route.label
        name, argument = match[1], match[2]
        if len(name) > REPOSITORY_LENGTH or not REPOSITORY_PATTERN.fullmatch(name):
            raise RegistryError("NAME_INVALID", detail=name[:REPOSITORY_LENGTH])
        if request.method not in route.endpoints:
            raise RegistryError("UNSUPPORTED", headers={hdrs.ALLOW: ", ".join(route.endpoints)})
        permission, endpoint = route.endpoints[request.method]
        request["scope"] = tokens.scope_of(name, permission)
        caller = request[CALLER] = await caller_of(request, request.app[REGISTRY])
        if not caller.may(permission, name):
            refuse(request, caller, f"the role {caller.principal.role.value} may not {permission.value} {name}")
        return await endpoint(request, request.app[REGISTRY], name, argument)
    await caller_of(request, request.app[REGISTRY])
    raise RegistryError("NAME_UNKNOWN", "no such endpoint", status=404)


def _sane(request: web.Request) -> bool:
    """Paths that are no text, or carry a NUL, name nothing."""
    try:
        return "\x00" not in unquote(request.rel_url.raw_path, errors="strict")
    except UnicodeDecodeError:
        return False
