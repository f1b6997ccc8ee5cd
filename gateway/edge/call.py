"""`Call`: one request as an invocation of its function, by either contract, and the function's answer as HTTP.

Strangers are told an error's type and first line, never a stack.
"""

from __future__ import annotations

import copy
import json
import re
import time

from aiohttp import web

from faas.errors import FaasError, FunctionError
from faas.leases import InvocationResult, StreamedResult, Trigger
from faas.remote import client_address
from faas.spec import Interface
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, SERVER, error_response, held_body
from gateway import trace
from gateway.edge.compression import compress
from gateway.edge.doorman import Caller
from gateway.edge.entry import DEFAULT, Entry
from gateway.event import OWN_PATH, Routed, encode, streamed_head
from gateway.expectation import expected, expects
from gateway.headers import inbound
from gateway.invoke import SYNC_PAYLOAD_BYTES, Invoker
from gateway.payloads import FORMATS
from gateway.proxy import proxy
from gateway.router import Route
from gateway.sending import Sending

_ERROR_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


async def call(
    request: web.Request, invoker: Invoker, entry: Entry, route: Route, caller: Caller
) -> web.StreamResponse:
    """Invoke `route`'s revision with `request`. Raises what the invocation raises but for the function's own errors."""
    try:
        expects(request)  # what cannot be met is refused before anything runs
        route = await invoker.known(route, Trigger.HTTP)
        if route.revision.interface is Interface.HTTP:
            return await proxy(
                request,
                invoker,
                route,
                entry.target.written,
                request[REQUEST_ID],
                websocket=entry.rules.websocket,
                compressed=entry.rules.compress,
            )
        return await _handle_event(request, invoker, entry, route, caller)
    except FunctionError as error:
        return error_response(for_strangers(error), request[REQUEST_ID])


async def _handle_event(
    request: web.Request, invoker: Invoker, entry: Entry, route: Route, caller: Caller
) -> web.StreamResponse:
    sending = Sending(request)
    try:
        async with held_body(request, SYNC_PAYLOAD_BYTES, expected) as body:
            trace_id = trace.of(request).amazon
            encoded = lambda_event(request, entry, route, caller, body)
            del body  # the event has it: what waits for its turn is held once
            invocation = invoker.invoke_streaming(
                route, encoded, trigger=Trigger.HTTP, request_id=request[REQUEST_ID], trace_id=trace_id
            )
            del encoded
            async with invocation as result:
                if isinstance(result, StreamedResult):
                    return await _stream(request, entry, result, sending)
    except FaasError:
        if sending.begun is None:
            raise
        return sending.cut()
    if result.error_type is not None:
        raise reported(result)
    status, headers, payload = FORMATS[entry.payload].answer(result.payload, result.content_type)
    headers.setdefault("Server", SERVER)
    answer = web.Response(status=status, headers=headers, body=payload)
    if entry.rules.compress:
        await compress(request, answer)
    return answer


async def _stream(request: web.Request, entry: Entry, result: StreamedResult, sending: Sending) -> web.StreamResponse:
    """The answer of a function that streams."""
    status, headers = streamed_head(result.prelude, result.content_type)
    headers[REQUEST_ID_HEADER] = request[REQUEST_ID]
    headers.setdefault("Server", SERVER)
    if request.method == "HEAD" or status in (204, 304):
        async for _ in result.body:
            pass
        return web.Response(status=status, headers=headers)
    answer = web.StreamResponse(status=status, headers=headers)
    return await sending.send(answer, result.body, None, compressed=entry.rules.compress)


def lambda_event(request: web.Request, entry: Entry, route: Route, caller: Caller, body: bytes) -> bytes:
    """The request as an event in the entry's payload format, encoded (`gateway.event` says what holds of it).

    What we have checked of its credentials is not passed on.
    """
    routed = OWN_PATH
    if entry.api or caller.context or entry.pattern != DEFAULT or entry.variables:
        where = (entry.api, entry.pattern, entry.stage, entry.parameters, entry.variables)
        routed = Routed(*where, caller.context, entry.stage_at)
    return encode(
        FORMATS[entry.payload].event(
            method=request.method,
            path=entry.target.path,
            query=entry.target.query,
            fields=inbound(request, request[REQUEST_ID]),
            body=body,
            protocol=f"HTTP/{request.version.major}.{request.version.minor}",
            source_ip=client_address(request),
            request_id=request[REQUEST_ID],
            function=route.label,
            account="anonymous" if caller.is_stranger else caller.principal.name,
            now=time.time(),
            routed=routed,
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


def for_strangers(error: FunctionError) -> FunctionError:
    """The first line, without diagnosis."""
    shown = copy.copy(error)
    shown.message = (error.message.splitlines() or [""])[0][:500]
    shown.hint = ""
    return shown
