"""`/async-function/{name}[:qualifier][/{path}]`: 202 once the request is stored durably, with its `X-Call-Id`."""

from __future__ import annotations

import time

from aiohttp import web

from faas.auth import Permission
from faas.errors import ShuttingDown
from faas.leases import Trigger
from faas.remote import client_address
from faas.web import REQUEST_ID, access, held_body
from gateway.callback import check_url
from gateway.dispatcher import Dispatcher
from gateway.edge.entry import REST, target_of
from gateway.edge.passage import Passage
from gateway.expectation import expected
from gateway.headers import inbound
from gateway.invoke import ASYNC_PAYLOAD_BYTES
from gateway.router import parse_name
from gateway.store.invocations import Kind, QueuedEvent

PREFIX = "/async-function/"
CALL_ID_HEADER, CALLBACK_HEADER = "X-Call-Id", "X-Callback-Url"


def async_routes(passage: Passage, dispatcher: Dispatcher) -> list[web.AbstractRouteDef]:
    """The routes of one listener; who may call is the doorman's word, as for `/function`."""

    @access(Permission.INVOKE)
    async def accept(request: web.Request) -> web.StreamResponse:
        if passage.invoker.draining:
            raise ShuttingDown
        target = target_of(request, PREFIX)
        entry = passage.function(target)
        namespace, name, qualifier = parse_name(target.name)
        if (answer := await passage.guards.closed(request, entry, passage.doorman)) is not None:
            return answer
        caller = await passage.doorman.admit(request, entry)
        target = caller.seen(entry).target
        callback = request.headers.get(CALLBACK_HEADER, "")
        if callback:
            check_url(callback)
        fields = inbound(request, request[REQUEST_ID])
        async with held_body(request, ASYNC_PAYLOAD_BYTES, expected) as body:
            event = QueuedEvent(
                id=request[REQUEST_ID],
                namespace=namespace,
                function=name,
                trigger=Trigger.ASYNC,
                kind=Kind.HTTP,
                payload=body,
                qualifier=qualifier,
                meta={
                    "method": request.method,
                    "path": target.path,
                    "query": target.query,
                    "fields": [field for field in fields if field[0] != "x-callback-url"],
                    "source_ip": client_address(request),
                    "account": "anonymous" if caller.is_stranger else caller.principal.name,
                    "label": entry.route.label,
                    "authorizer": dict(caller.context),
                    "payload": entry.payload,
                },
                callback_url=callback,
                created_at=time.time(),
            )
            async with passage.guards.within(request, entry, caller, passage.invoker, Trigger.ASYNC):
                await dispatcher.accept(event)
        return web.Response(status=202, headers={CALL_ID_HEADER: event.id})

    later = {"expect_handler": _later}
    return [
        web.route("*", "/async-function/{name}", accept, **later),
        web.route("*", f"/async-function/{{name}}/{REST}", accept, **later),
    ]


async def _later(request: web.Request) -> None:
    """`Expect` is answered when the body is wanted."""
