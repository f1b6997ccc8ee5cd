"""The handlers of WebSocket APIs: `/ws/…` on the public listener, `@connections` on the API listener.

`@connections` is Amazon API Gateway's management API, its errors in its own shape: AWS's clients read those.
"""

from __future__ import annotations

import functools
from typing import Any

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.connections import amazon_error
from faas.errors import Gone, NotFound, PayloadTooLarge, Throttled
from faas.web import PRINCIPAL, REQUEST_ID, Handler, access, error_body, read_body, waits
from gateway.control.operations import Operation, an_object, answer, path_text
from gateway.edge.entry import Entry, Target, by_host
from gateway.edge.passage import Passage, on_answer
from gateway.edge.websocket.api import PREFIX, WebSocketApi
from gateway.edge.websocket.apis import WebSocketApis
from gateway.edge.websocket.opening import Opening, accept_key
from gateway.edge.websocket.pushes import Pushes, end, seen
from gateway.edge.websocket.session import Session
from gateway.gateway import GATEWAY
from gateway.tunnel import check_origin


def public_routes(passage: Passage, apis: WebSocketApis, domain: str) -> list[web.AbstractRouteDef]:
    """Of the public listener, before functions by host: with `domain` the paths of those are theirs."""

    @access(Permission.INVOKE)
    async def connect(request: web.Request) -> web.StreamResponse:
        if domain and (target := by_host(request, domain)) is not None:
            return await passage.through(request, passage.function(target))
        if (api := apis.at(request.path)) is None:
            raise NotFound("there is no such WebSocket API")
        on_answer(request, _name_the_protocol)
        accept = accept_key(request)
        check_origin(request, api.limits)
        with apis.connections.place(api, alone=apis.is_alone) as place:
            opening = Opening(apis, api, place, accept)
            try:
                response = await passage.through(request, _entry(apis, api, request), opening.ask)
                if response.status == 101:
                    await opening.session(request, response)
                return response
            finally:
                opening.abandoned()

    return [web.route("*", PREFIX + "{path:.*}", connect)]


def _name_the_protocol(response: web.StreamResponse) -> None:
    if response.status == 426:
        response.headers[hdrs.UPGRADE] = "websocket"


def _entry(apis: WebSocketApis, api: WebSocketApi, request: web.Request) -> Entry:
    """Raises NotFound where the function is none any more."""
    path, _, query = request.raw_path.partition("?")
    route = apis.functions.route(api, api.entrance)
    return Entry(
        route,
        Target(api.label, path, query),
        api.rules,
        api.public,
        api=api.label,
        pattern="$connect",
        stage=api.stage,
    )


def _as_amazon(handler: Handler) -> Handler:
    """Errors with `message` and `x-amzn-ErrorType` too, which AWS's clients read."""

    @functools.wraps(handler)
    async def answering(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (Gone, Throttled, PayloadTooLarge) as error:
            request_id = request[REQUEST_ID]
            body: dict[str, Any] = {
                "message": error.message,
                "connectionId": request.match_info["id"],
                "requestId": request_id,
            }
            body |= error_body(error, request_id)
            fields = {"x-amzn-ErrorType": amazon_error(error), **waits(error)}
            return web.json_response(body, status=error.status, headers=fields)

    return answering


def _connection(request: web.Request) -> tuple[Pushes, Session]:
    """The connection that the path names, where the caller may invoke its API's functions.

    Raises Gone, for every other one alike: whether an id exists elsewhere is nobody's business.
    """
    pushes, principal = Pushes(request.app[GATEWAY].edge.websockets), request[PRINCIPAL]
    session = pushes.session(path_text(request, "id"), request.match_info.get("stage"))
    api = session.api
    if not all(principal.may(Permission.INVOKE, api.namespace, name) for name in api.functions):
        raise Gone
    return pushes, session


@access(Permission.INVOKE)
@_as_amazon
async def posted(request: web.Request) -> web.StreamResponse:
    pushes, session = _connection(request)
    pushes.send(session, await read_body(request, session.api.max_message))
    return web.Response(status=200)


@access(Permission.INVOKE)
@_as_amazon
async def looked_at(request: web.Request) -> web.StreamResponse:
    _, session = _connection(request)
    return answer(seen(session))


@access(Permission.INVOKE)
@_as_amazon
async def closed(request: web.Request) -> web.StreamResponse:
    _, session = _connection(request)
    end(session)
    return web.Response(status=204)


_LOOKED_AT = an_object(("connectedAt", "identity", "lastActiveAt"), more=True)
OPERATIONS = tuple(
    operation
    for path in ("/@connections/{id}", "/{stage}/@connections/{id}")
    for operation in (
        Operation("POST", path, posted, "Send the body to a WebSocket API's connection", {200: None, 410: None}),
        Operation("GET", path, looked_at, "A WebSocket API's connection", {200: _LOOKED_AT, 410: None}),
        Operation("DELETE", path, closed, "Close a WebSocket API's connection", {204: None, 410: None}),
    )
)
