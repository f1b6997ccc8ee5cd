"""`Call`: one request as an invocation of its function, by either contract, and the function's answer as HTTP.

Strangers are told an error's type and first line, never a stack.
"""

from __future__ import annotations

import copy
import json
import re
import time

from aiohttp import web

from faas.errors import FunctionError
from faas.leases import InvocationResult, Trigger
from faas.spec import Interface
from faas.web import REQUEST_ID, error_response, held_body
from gateway import event
from gateway.edge.doorman import Caller
from gateway.edge.entry import Entry
from gateway.headers import inbound
from gateway.invoke import SYNC_PAYLOAD_BYTES, Invoker
from gateway.proxy import SERVER, expected, proxy
from gateway.router import Route

_ERROR_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


async def call(
    request: web.Request, invoker: Invoker, entry: Entry, route: Route, caller: Caller
) -> web.StreamResponse:
    """Invoke `route`'s revision with `request`. Raises what the invocation raises but for the function's own errors."""
    try:
        route = await invoker.known(route, Trigger.HTTP)
        if route.revision.interface is Interface.HTTP:
            return await proxy(
                request, invoker, route, entry.target.written, request[REQUEST_ID], authorization=caller.is_stranger
            )
        return await _handle_event(request, invoker, entry, route, caller)
    except FunctionError as error:
        return error_response(_for_strangers(error), request[REQUEST_ID])


async def _handle_event(
    request: web.Request, invoker: Invoker, entry: Entry, route: Route, caller: Caller
) -> web.StreamResponse:
    request_id = request[REQUEST_ID]
    async with held_body(request, SYNC_PAYLOAD_BYTES, expected) as body:
        encoded = lambda_event(request, entry, route, caller, body)
        del body  # the event has it: what waits for its turn is held once
        result = await invoker.invoke_event(route, encoded, trigger=Trigger.HTTP, request_id=request_id)
    if result.error_type is not None:
        raise reported(result)
    status, headers, payload = event.http_answer(result.payload, result.content_type)
    headers.setdefault("Server", SERVER)
    return web.Response(status=status, headers=headers, body=payload)


def lambda_event(request: web.Request, entry: Entry, route: Route, caller: Caller, body: bytes) -> bytes:
    """The request as payload format 2.0, encoded. What we have checked of its credentials is not passed on."""
    return event.encode(
        event.http_event(
            method=request.method,
            path=entry.target.path,
            query=entry.target.query,
            fields=inbound(request, request[REQUEST_ID], authorization=caller.is_stranger),
            body=body,
            protocol=f"HTTP/{request.version.major}.{request.version.minor}",
            source_ip=request.remote or "",
            request_id=request[REQUEST_ID],
            function=route.label,
            account="anonymous" if caller.is_stranger else caller.principal.name,
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
