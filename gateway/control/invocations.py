"""Invocations through the control API: synchronous, asynchronous (`Event`), or a try whether it would be allowed
(`DryRun`); and the status of asynchronous ones."""

from __future__ import annotations

import asyncio
import base64
import json
import time

from aiohttp import web

from faas.auth import Permission
from faas.errors import FunctionError, InvalidInput, NotFound, ShuttingDown
from faas.leases import Trigger
from faas.protocol import (
    LogQuery,
)
from faas.spec import Interface
from faas.web import PRINCIPAL, REQUEST_ID, access, error_response, read_body, with_command
from gateway import trace
from gateway.control.operations import (
    TEXT,
    TIME,
    WHOLE,
    FunctionName,
    Operation,
    allow,
    an_object,
    answer,
    function_name,
    path_text,
    stamp,
)
from gateway.edge.caller import Caller
from gateway.flight import FLIGHT
from gateway.gateway import GATEWAY, Gateway
from gateway.invoke import ASYNC_PAYLOAD_BYTES, SYNC_PAYLOAD_BYTES
from gateway.router import Route
from gateway.store import invocations
from gateway.store.invocations import QueuedEvent

TYPE_HEADER, LOG_TYPE_HEADER = "X-Faas-Invocation-Type", "X-Faas-Log-Type"
LOG_RESULT_HEADER, ERROR_TYPE_HEADER = "X-Faas-Log-Result", "X-Error-Type"
TYPES = ("RequestResponse", "Event", "DryRun")
TAIL_BYTES = 4096
TAIL_SECONDS = 5.0  # for an invocation's last lines: of one that was killed they come when all has died
INLINE_BYTES = 65_536  # JSON beyond this is checked in a thread


@access(Permission.INVOKE)
async def invoked(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.INVOKE, qualified=True)
    kind = request.headers.get(TYPE_HEADER, TYPES[0])
    if kind not in TYPES:
        raise InvalidInput(f"{TYPE_HEADER} must be one of " + ", ".join(TYPES))
    try:
        route = gateway.router.resolve(where.namespace, where.name, where.qualifier)
    except NotFound as error:
        near = gateway.router.near(where.namespace, where.name)
        raise NotFound(error.message, hint=f"did you mean {' or '.join(near)}?" if near else "") from None
    limit = ASYNC_PAYLOAD_BYTES if kind == "Event" else SYNC_PAYLOAD_BYTES
    event = await read_body(request, limit) or b"{}"
    if route.revision.interface is not Interface.HTTP:
        await _check_json(event)
    if kind == "DryRun":
        return web.Response(status=204)
    if kind == "Event":
        return await _queued(request, gateway, where, event)
    return await _ran(request, gateway, route, event)


async def _check_json(event: bytes) -> None:
    try:
        await asyncio.to_thread(json.loads, event) if len(event) > INLINE_BYTES else json.loads(event)
    except (ValueError, RecursionError):
        raise InvalidInput("the event is not valid JSON") from None


async def _queued(request: web.Request, gateway: Gateway, where: FunctionName, event: bytes) -> web.Response:
    if not gateway.ready:
        raise ShuttingDown
    queued = QueuedEvent(
        id=request[REQUEST_ID],
        namespace=where.namespace,
        function=where.name,
        trigger=Trigger.ASYNC,
        payload=event,
        qualifier=where.qualifier,
        created_at=time.time(),
    )
    return answer({"id": await gateway.dispatcher.accept(queued)}, 202)


async def _ran(request: web.Request, gateway: Gateway, route: Route, event: bytes) -> web.Response:
    tail = request.headers.get(LOG_TYPE_HEADER, "").lower() == "tail"
    request_id = request[REQUEST_ID]
    turn = gateway.path.canaries.choose(request, route, Caller(request[PRINCIPAL]))
    request[FLIGHT] = turn.flight
    with turn as chosen:
        response = await _result(gateway, chosen, event, request)
        turn.answered(502 if ERROR_TYPE_HEADER in response.headers else response.status)
    if tail:
        response.headers[LOG_RESULT_HEADER] = base64.b64encode(await _tail(gateway, route, request_id)).decode()
    return response


async def _result(gateway: Gateway, route: Route, event: bytes, request: web.Request) -> web.Response:
    request_id, trace_id = request[REQUEST_ID], trace.of(request).amazon
    try:
        result = await gateway.path.invoker.invoke_event(
            route, event, trigger=Trigger.API, request_id=request_id, trace_id=trace_id
        )
    except FunctionError as error:
        response = error_response(with_command(error, route.label, request_id), request_id)
    else:
        response = web.Response(body=result.payload, headers={"Content-Type": result.content_type})
        if result.error_type is not None:
            response.headers[ERROR_TYPE_HEADER] = _one_line(result.error_type)
    return response


def _one_line(text: str) -> str:
    """An error's name comes from the function: what no header may hold is left out."""
    return "".join(c for c in text[:128] if c.isascii() and c.isprintable()) or "Function.Error"


async def _tail(gateway: Gateway, route: Route, request_id: str) -> bytes:
    """The end of what an invocation wrote, its REPORT line included where that comes in time."""
    key = route.revision.key
    query = LogQuery(key.namespace, key.function, since=time.time() - 3600, request_id=request_id)
    deadline = time.monotonic() + TAIL_SECONDS
    while True:
        lines = [record.message async for record in gateway.worker.logs(query)]
        if any(line.startswith("REPORT ") for line in lines) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")[-TAIL_BYTES:]


@access(Permission.READ)
async def status(request: web.Request) -> web.Response:
    async with request.app[GATEWAY].database.read() as tx:
        event = await tx.run_sync(invocations.get, path_text(request, "id"))
    if event is None:
        raise NotFound("there is no such asynchronous invocation, or it ended more than a day ago")
    allow(request, Permission.READ, event.namespace, event.function)
    return answer(
        {
            "id": event.id,
            "function": event.function,
            "namespace": event.namespace,
            "status": event.status,
            "trigger": event.trigger.value,
            "attempts": event.attempts,
            "created_at": stamp(event.created_at),
            "ended_at": stamp(event.ended_at),
            "error_type": event.error_type,
            "error_message": event.error_message,
        }
    )


_INVOCATION = an_object(
    ("id", "function", "namespace", "status"), more=True, id=TEXT, function=TEXT, namespace=TEXT, status=TEXT,
    attempts=WHOLE, created_at=TIME, ended_at={"type": ["string", "null"]}, error_type=TEXT, error_message=TEXT,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "POST", "/v1/functions/{name}/invocations", invoked, "Invoke; the body is the event (JSON)",
        {200: {}, 202: an_object(("id",), id=TEXT), 204: None}, body={},
    ),
    Operation(
        "GET", "/v1/invocations/{id}", status, "The status of an asynchronous invocation", {200: _INVOCATION}
    ),
)  # fmt: skip
