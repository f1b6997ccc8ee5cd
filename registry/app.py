"""The registry over HTTP (distribution-spec 1.1): one door, which asks who comes, finds the endpoint, and answers
errors in the spec's form.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from faas.errors import FaasError
from faas.runner import ANSWER
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, doubt_about, new_request_id, waits
from registry import audit, catalog, extension, images, policies, quotas, retention, tokens
from registry.access import STRANGER
from registry.errors import RegistryError
from registry.extension import OwnEndpoint
from registry.requests import LACKING, ROUTE, SCOPE, caller_of, only, refuse
from registry.routes import find, say_source
from registry.service import Registry

log = logging.getLogger("registry")

REGISTRY = web.AppKey("registry", Registry)
GONE = audit.GONE  # nginx's number for a client that closed the connection
API_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OWN = (*extension.ENDPOINTS, *images.ENDPOINTS, *policies.ENDPOINTS, *quotas.ENDPOINTS, *retention.ENDPOINTS)


def create_app(registry: Registry) -> web.Application:
    app = web.Application(middlewares=[_answered], client_max_size=0)
    app[REGISTRY] = registry
    app[ANSWER] = _refused
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
    app.on_response_prepare.append(say_source)
    return app


def _refused(error: FaasError, request_id: str) -> web.Response:
    """What never came to be a request."""
    told = RegistryError("UNSUPPORTED", error.message, status=error.status)
    return web.json_response(told.body(), status=told.status)


@web.middleware
async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in the spec's form, never a 500 for bad input; each request is counted by its route."""
    registry = request.app[REGISTRY]
    request[REQUEST_ID] = new_request_id()
    doubt = doubt_about(request)
    try:
        if doubt:
            raise RegistryError("UNSUPPORTED", doubt, status=400)
        response = await handler(request)
    except ConnectionError:  # the client has gone, or was cut off: nobody hears an answer
        if request.transport is not None:
            request.transport.abort()
        response = web.Response(status=GONE)
    except TimeoutError:
        raise
    except asyncio.CancelledError:
        audit.abandoned(request, registry)
        raise
    except Exception as error:
        response = _failure(error, request[REQUEST_ID])
    await audit.recorded(request, registry, response.status)
    if doubt:
        response.force_close()
    if response.status == 401:
        asked = tokens.challenge(request, registry, request.get(SCOPE, ""), request.get(LACKING, ""))
        response.headers.update({hdrs.WWW_AUTHENTICATE: asked, **API_VERSION})
    label = request.get(ROUTE, "other")
    registry.metrics.registry_requests.labels(_method(request.method), label, str(response.status)).inc()
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    return response


def _failure(error: Exception, request_id: str) -> web.Response:
    """What a client hears of `error`; what is our fault or the machine's is logged."""
    if isinstance(error, RegistryError):
        if error.status >= 500:  # no room on the disk, an upstream that is away: whoever runs this wants to know
            log.warning("%s", error.message, extra={"request_id": request_id})
            error.message += f" (request id {request_id})"  # of all that we answer, clients show nothing else
        return web.json_response(error.body(), status=error.status, headers=error.headers)
    if isinstance(error, FaasError):
        code = {400: "SIZE_INVALID", 401: "UNAUTHORIZED", 429: "TOOMANYREQUESTS"}.get(error.status, "DENIED")
        if error.status >= 500:
            log.error("request failed: %s", error, extra={"request_id": request_id})
        words = f"{error.message} (request id {request_id})" if error.status >= 500 else error.message
        return web.json_response(RegistryError(code, words).body(), status=error.status, headers=waits(error))
    if isinstance(error, web.HTTPException):
        code = "UNSUPPORTED" if error.status == 405 else "NAME_UNKNOWN"
        allowed = {name: value for name, value in error.headers.items() if name == hdrs.ALLOW}
        return web.json_response(RegistryError(code, error.reason).body(), status=error.status, headers=allowed)
    if isinstance(error, OSError):
        log.error("storage failed: %s", error, extra={"request_id": request_id})
        words = f"storage failed: {error.strerror} (request id {request_id})"
        return web.json_response(RegistryError("DENIED", words).body(), status=507)
    log.error("request failed", exc_info=error, extra={"request_id": request_id})
    words = f"our fault; it is logged with request id {request_id}"
    return web.json_response(RegistryError("UNSUPPORTED", words).body(), status=500)


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
        registry, request[ROUTE] = request.app[REGISTRY], "extension"
        if request.method not in methods and (await caller_of(request, registry)).is_anonymous:
            raise RegistryError("UNAUTHORIZED")
        only(request, *methods)
        if (change := audit.of_own(request)) is not None:
            registry.trail.check()
            request[audit.CHANGE] = change
        return await methods[request.method](request, registry)

    return answer


async def _dispatch(request: web.Request) -> web.StreamResponse:
    registry = request.app[REGISTRY]
    caller = await caller_of(request, registry)
    try:
        name, argument, permission, endpoint = find(request, registry.cache.upstreams)
    except RegistryError:
        if caller.is_anonymous:  # strangers learn nothing of what is served here, nor how
            raise RegistryError("UNAUTHORIZED") from None
        raise
    request[SCOPE] = tokens.scope_of(name, permission)
    if (change := audit.of_endpoint(request, request[ROUTE], name, argument)) is not None:
        registry.trail.check()
        request[audit.CHANGE] = change
    if not registry.access.may(caller, permission, name):
        refuse(request, caller, f"{caller.principal.title} may not {permission.value} {name}")
    return await endpoint(request, registry, registry.cache.upstreams.canonical(name), argument)
