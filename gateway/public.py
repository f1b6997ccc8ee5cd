"""`/function/{name}[:qualifier][/{path}]` for any method, and functions by host: the handlers of both listeners.

On the public listener a function with `public = true` is anyone's; every other one, and all on the API listener, ask
for credentials that may invoke it. Strangers are told an error's type and first line, never a stack.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import hdrs, web

from faas.attempts import Attempts
from faas.auth import ANONYMOUS, Authenticator, Permission, Principal
from faas.errors import FunctionError, InvalidInput, NotFound, ShuttingDown
from faas.protocol import InvocationResult, Trigger
from faas.spec import Interface
from faas.web import (
    LOGIN_HINT,
    PRINCIPAL,
    REQUEST_ID,
    access,
    credentials,
    doubt_about,
    error_response,
    held_body,
    require,
)
from gateway import event
from gateway.headers import inbound
from gateway.invoke import SYNC_PAYLOAD_BYTES, Invoker
from gateway.proxy import SERVER, expected, proxy
from gateway.router import Route, Router, parse_name

log = logging.getLogger("faas.access")

PREFIX = "/function/"
_ERROR_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def strict(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what could be read in two ways, and close: proxy-form targets, doubtful hosts, lengths under HTTP/1.0."""
    if fault := doubt_about(request):
        response: web.StreamResponse = error_response(InvalidInput(fault), request[REQUEST_ID])
        response.force_close()
        return response
    response = await handler(request)
    if hdrs.UPGRADE in request.headers and response.status != 101:
        response.force_close()  # what follows may have been meant for the protocol that was asked for
    return response


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: the function's name as written (`hello.team:v7`), and what the function sees."""

    name: str
    path: str  # raw, with its first slash
    query: str  # raw

    @property
    def written(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


def target_of(request: web.Request, prefix: str = PREFIX) -> Target:
    """The target of `{prefix}{name}[/{path}][?query]`, not decoded but for the name. Raises NotFound."""
    raw, _, query = request.raw_path.partition("?")
    if not raw.startswith(prefix):
        raise NotFound("there is no such function")
    name, slash, path = raw[len(prefix) :].partition("/")
    return Target(unquote(name) if "%" in name else name, slash + path or "/", query)


def by_host(request: web.Request, domain: str) -> Target | None:
    """The target of a request to `{name}.{domain}`: the whole path is the function's."""
    host = request.headers.get(hdrs.HOST, "").rpartition(":")[0] or request.headers.get(hdrs.HOST, "")
    name, dot, rest = host.lower().partition("." + domain.lower())
    if not domain or not dot or rest:
        return None
    path, _, query = request.raw_path.partition("?")
    return Target(name, path, query)


@dataclass(frozen=True, slots=True)
class Doorman:
    """Who may call a function. `everybody_logs_in`: the API listener, where `public` opens nothing."""

    authenticator: Authenticator
    everybody_logs_in: bool = False
    attempts: Attempts = field(default_factory=Attempts)

    async def admit(self, request: web.Request, route: Route) -> Principal:
        """The caller; ANONYMOUS at a public function. Raises Unauthenticated, Forbidden, Throttled."""
        if route.revision.spec.public and not self.everybody_logs_in:
            return ANONYMOUS
        principal = request.get(PRINCIPAL)  # set by the API listener's middleware
        if principal is None:
            principal = await self._log_in(request)
        key = route.revision.key
        require(principal, Permission.INVOKE, key.namespace, key.function)
        return principal

    async def _log_in(self, request: web.Request) -> Principal:
        given = credentials(request)
        if given is None:
            return ANONYMOUS
        return await self.attempts.admit(self.authenticator, *given, request.remote, hint=LOGIN_HINT)


def lambda_event(request: web.Request, target: Target, route: Route, principal: Principal, body: bytes) -> bytes:
    """The request as payload format 2.0, encoded. What we have checked of its credentials is not passed on."""
    stranger = principal is ANONYMOUS
    return event.encode(
        event.http_event(
            method=request.method,
            path=target.path,
            query=target.query,
            fields=inbound(request, request[REQUEST_ID], authorization=stranger),
            body=body,
            protocol=f"HTTP/{request.version.major}.{request.version.minor}",
            source_ip=request.remote or "",
            request_id=request[REQUEST_ID],
            function=route.label,
            account="anonymous" if stranger else principal.name,
            now=time.time(),
        )
    )


def reported(result: InvocationResult) -> FunctionError:
    """The error that a function reported itself, with its own name and the first line of its message."""
    error_type = result.error_type or ""
    try:
        message = str(json.loads(result.payload)["errorMessage"])
    except (ValueError, LookupError, TypeError, RecursionError):
        message = ""
    return FunctionError(
        message or "the function failed",
        error_type=error_type if _ERROR_TYPE.fullmatch(error_type) else "Function.Error",
    )


def _for_strangers(error: FunctionError) -> FunctionError:
    """The first line, without diagnosis."""
    shown = copy.copy(error)
    shown.message = (error.message.splitlines() or [""])[0][:500]
    shown.hint = ""
    return shown


def function_routes(
    router: Router, invoker: Invoker, doorman: Doorman, *, domain: str = ""
) -> list[web.AbstractRouteDef]:
    """The routes of one listener; with `domain`, every path of `{name}.{domain}` too (register these last)."""

    async def invoke(request: web.Request, target: Target) -> web.StreamResponse:
        if invoker.draining:
            raise ShuttingDown
        namespace, name, qualifier = parse_name(target.name)
        try:
            route = router.resolve(namespace, name, qualifier)
        except NotFound as error:
            if doorman.everybody_logs_in and (near := router.near(namespace, name)):
                raise NotFound(error.message, hint=f"did you mean {' or '.join(near)}?") from None
            raise
        principal = await doorman.admit(request, route)
        try:
            route = await invoker.known(route, Trigger.HTTP)
            if route.revision.interface is Interface.HTTP:
                authorization = principal is ANONYMOUS
                return await proxy(
                    request, invoker, route, target.written, request[REQUEST_ID], authorization=authorization
                )
            return await handle_event(request, target, route, principal)
        except FunctionError as error:
            return error_response(_for_strangers(error), request[REQUEST_ID])

    async def handle_event(
        request: web.Request, target: Target, route: Route, principal: Principal
    ) -> web.StreamResponse:
        request_id = request[REQUEST_ID]
        async with held_body(request, SYNC_PAYLOAD_BYTES, expected) as body:
            encoded = lambda_event(request, target, route, principal, body)
            del body  # the event has it: what waits for its turn is held once
            result = await invoker.invoke_event(route, encoded, trigger=Trigger.HTTP, request_id=request_id)
        if result.error_type is not None:
            raise reported(result)
        status, headers, payload = event.http_answer(result.payload, result.content_type)
        headers.setdefault("Server", SERVER)
        return web.Response(status=status, headers=headers, body=payload)

    @access(Permission.INVOKE)
    async def function(request: web.Request) -> web.StreamResponse:
        target = (by_host(request, domain) if domain else None) or target_of(request)
        response = await invoke(request, target)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "%s %s %d", request.method, target.name, response.status, extra={"request_id": request[REQUEST_ID]}
            )
        return response

    @access(Permission.INVOKE)
    async def host(request: web.Request) -> web.StreamResponse:
        target = by_host(request, domain)
        if target is None:
            raise NotFound("there is nothing here")
        return await invoke(request, target)

    later = {"expect_handler": _later}
    routes: list[web.AbstractRouteDef] = [
        web.route("*", "/function/{name}", function, **later),
        web.route("*", "/function/{name}/{path:.*}", function, **later),
    ]
    if domain:
        routes.append(web.route("*", "/{path:.*}", host, **later))
    return routes


async def _later(request: web.Request) -> None:
    """`Expect` is answered when the body is wanted, not before it is known to be."""
