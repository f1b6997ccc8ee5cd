"""The registry over HTTP (distribution-spec 1.1): one door, which finds the endpoint, checks who asks, and answers
errors in the spec's form. Repositories may be called like routes, so paths are read from the right.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import NoReturn
from urllib.parse import unquote

from aiohttp import hdrs, web

from faas.auth import ALL_NAMESPACES, ANONYMOUS, ROOT, Permission, Principal
from faas.errors import FaasError, Unauthenticated
from faas.oci.reference import REPOSITORY_LENGTH, REPOSITORY_PATTERN
from faas.web import PRINCIPAL, REQUEST_ID, REQUEST_ID_HEADER, credentials, new_request_id
from registry import blobs, manifests, uploads
from registry.errors import RegistryError
from registry.requests import may
from registry.service import Registry

log = logging.getLogger("registry")

REGISTRY = web.AppKey("registry", Registry)
REPOSITORY = web.RequestKey("repository", str)
API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
CHALLENGE = {hdrs.WWW_AUTHENTICATE: 'Basic realm="faas"', **API_VERSION}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Endpoint = Callable[[web.Request, Registry, str, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """`pattern` finds (name, argument) in the path behind /v2/; one endpoint per method."""

    label: str
    pattern: re.Pattern[str]
    endpoints: dict[str, tuple[Permission, Endpoint]]


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
    app.router.add_post("/v2/_faas/gc", _collect)
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
        headers = CHALLENGE if code == "UNAUTHORIZED" else {}
        if error.status >= 500:
            log.error("request failed: %s", error, extra={"request_id": request[REQUEST_ID]})
        response = web.json_response(RegistryError(code, error.message).body(), status=error.status, headers=headers)
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
    label = request.get("route", "other")
    registry.metrics.registry_requests.labels(_method(request.method), label, str(response.status)).inc()
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    return response


def _method(method: str) -> str:
    """A label of bounded variety: methods are the client's words."""
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "OTHER"


async def _principal(request: web.Request) -> Principal:
    """Who asks. Raises Unauthenticated."""
    authenticator = request.app[REGISTRY].authenticator
    if authenticator is None:
        return ROOT
    given = credentials(request)
    if given is None:
        return ANONYMOUS
    found = await authenticator.authenticate(*given)
    if found is None:
        raise Unauthenticated("unknown user or token")
    return found


async def _root(request: web.Request) -> web.StreamResponse:
    """end-1. Asks for a login, since clients look here for how to log in."""
    request["route"] = "root"
    if await _principal(request) is ANONYMOUS:
        raise RegistryError("UNAUTHORIZED", headers=CHALLENGE)
    return web.json_response({}, headers=API_VERSION)


async def _catalog(request: web.Request) -> web.StreamResponse:
    """Docker's list of repositories: those that the caller may pull."""
    request["route"] = "catalog"
    principal = await _principal(request)
    _allow(principal, Permission.PULL, None)
    return await manifests.catalog(request, request.app[REGISTRY], principal)


async def _collect(request: web.Request) -> web.StreamResponse:
    """Our own: collect garbage now; `?dry-run=1` says what that would take. For an administrator of everything."""
    request["route"] = "gc"
    principal = await _principal(request)
    if not principal.may(Permission.ADMIN, ALL_NAMESPACES):
        _refuse(principal, "an administrator collects garbage")
    dry = request.query.get("dry-run", "") in ("1", "true")
    return web.json_response(asdict(await request.app[REGISTRY].collect(dry_run=dry)))


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
        principal = await _principal(request)
        _allow(principal, permission, name)
        request[PRINCIPAL] = principal
        return await endpoint(request, request.app[REGISTRY], name, argument)
    await _principal(request)
    raise RegistryError("NAME_UNKNOWN", "no such endpoint", status=404)


def _sane(request: web.Request) -> bool:
    """Paths that are no text, or carry a NUL, name nothing."""
    try:
        return "\x00" not in unquote(request.rel_url.raw_path, errors="strict")
    except UnicodeDecodeError:
        return False


def _allow(principal: Principal, permission: Permission, repository: str | None) -> None:
    allowed = principal.may(permission) if repository is None else may(principal, permission, repository)
    if not allowed:
        _refuse(principal, f"the role {principal.role.value} may not {permission.value} {repository or ''}".rstrip())


def _refuse(principal: Principal, words: str) -> NoReturn:
    """A stranger is asked to log in; who has logged in hears why not."""
    if principal is ANONYMOUS:
        raise RegistryError("UNAUTHORIZED", headers=CHALLENGE)
    raise RegistryError("DENIED", words)
