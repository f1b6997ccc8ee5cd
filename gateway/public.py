"""`/function/{name}[:qualifier][/{path}]` for any method, and functions by host: the handlers of both listeners.

They find the entry; the rest is `gateway.edge.passage`. On the public listener a function with `public = true` is
anyone's; every other one, and all on the API listener, ask for credentials that may invoke it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from faas.auth import Permission
from faas.errors import InvalidInput, NotFound, ShuttingDown
from faas.web import REQUEST_ID, access, doubt_about, error_response
from gateway.edge.apis.arrivals import Arrivals, host_of
from gateway.edge.entry import REST, by_host, target_of
from gateway.edge.passage import Passage

log = logging.getLogger("faas.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def strict(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what could be read in two ways, and close: proxy-form targets, doubtful hosts, lengths under HTTP/1.0."""
    if fault := doubt_about(request):
        response: web.StreamResponse = error_response(InvalidInput(fault), request[REQUEST_ID])
        response.force_close()
        return response
    return await handler(request)


def by_api_host(passage: Passage, arrivals: Arrivals) -> Middleware:
    """The middleware that takes every path of an API's host, whatever else the listener has there."""

    @web.middleware
    async def taken(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = host_of(request)
        return await _routed(request, passage, arrivals, host) if arrivals.has_host(host) else await handler(request)

    return cast("Middleware", taken)


async def _routed(request: web.Request, passage: Passage, arrivals: Arrivals, host: str) -> web.StreamResponse:
    if passage.invoker.draining:
        raise ShuttingDown
    return await passage.through(request, arrivals.entry(request, host))


def function_routes(
    passage: Passage, *, domain: str = "", arrivals: Arrivals | None = None
) -> list[web.AbstractRouteDef]:
    """The routes of one listener; with `domain`, every path of `{name}.{domain}` too, and with `arrivals` what is left
    for APIs without a host (register these last)."""

    @access(Permission.INVOKE)
    async def function(request: web.Request) -> web.StreamResponse:
        if passage.invoker.draining:
            raise ShuttingDown
        target = (by_host(request, domain) if domain else None) or target_of(request)
        response = await passage.through(request, passage.function(target))
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "%s %s %d", request.method, target.name, response.status, extra={"request_id": request[REQUEST_ID]}
            )
        return response

    @access(Permission.INVOKE)
    async def others(request: web.Request) -> web.StreamResponse:
        target = by_host(request, domain) if domain else None
        if target is not None:
            return await passage.through(request, passage.function(target))
        if arrivals is None:
            raise NotFound("there is nothing here")
        return await _routed(request, passage, arrivals, host_of(request))

    later = {"expect_handler": _later}
    routes: list[web.AbstractRouteDef] = [
        web.route("*", "/function/{name}", function, **later),
        web.route("*", f"/function/{{name}}/{REST}", function, **later),
    ]
    if domain or arrivals is not None:
        routes.append(web.route("*", f"/{REST}", others, **later))
    return routes


async def _later(request: web.Request) -> None:
    """`Expect` is answered when the body is wanted, not before it is known to be."""
