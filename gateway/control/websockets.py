"""WebSocket APIs: listed, made, deleted, and who is connected."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.web import access, json_body
from gateway.control.operations import (
    FLAG,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    an_object,
    answer,
    function_name,
    may,
    namespace_asked,
    stamp,
)
from gateway.edge.websocket.api import CONNECTIONS_MOST, IN_FLIGHT_MOST, WebSocketApi, parse
from gateway.edge.websocket.session import Session
from gateway.gateway import GATEWAY, Gateway

SHOWN = 1000  # connections in one answer, the oldest


def shown(gateway: Gateway, api: WebSocketApi) -> dict[str, Any]:
    base = gateway.info.public_url.replace("http", "ws", 1)
    return {
        "name": api.name,
        "namespace": api.namespace,
        **api.to_dict(),
        "url": base + api.path,
        "open": gateway.edge.websockets.connections.count(api.key),
    }


def shown_connection(session: Session) -> dict[str, Any]:
    received, sent = session.messages
    return {
        "id": session.peer.connection_id,
        "connected_at": stamp(session.peer.connected_at),
        "last_active_at": stamp(session.last_active_at),
        "source_ip": session.peer.source_ip,
        "user_agent": session.peer.user_agent,
        "received": received,
        "sent": sent,
        "pending_bytes": session.pending,
    }


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, namespace = request.app[GATEWAY], namespace_asked(request)
    found = [
        shown(gateway, api)
        for api in gateway.edge.websockets.every()
        if namespace in ("", api.namespace) and may(request, Permission.READ, api.namespace)
    ]
    return answer({"websockets": found})


@access(Permission.READ)
async def read(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.READ)
    return answer(shown(gateway, gateway.edge.websockets.get(where.namespace, where.name)))


@access(Permission.CHANGE)
async def put(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE)
    api = parse(where.namespace, where.name, await json_body(request))
    for function in sorted(api.functions):
        gateway.deployer.known(where.namespace, function)
    is_new = await gateway.edge.websockets.put(api)
    return answer(shown(gateway, api), 201 if is_new else 200)


@access(Permission.CHANGE)
async def deleted(request: web.Request) -> web.Response:
    where = function_name(request, Permission.CHANGE)
    await request.app[GATEWAY].edge.websockets.remove(where.namespace, where.name)
    return web.Response(status=204)


@access(Permission.READ)
async def connected(request: web.Request) -> web.Response:
    apis, where = request.app[GATEWAY].edge.websockets, function_name(request, Permission.READ)
    sessions = apis.connections.of(apis.get(where.namespace, where.name).key)
    return answer({"open": len(sessions), "connections": [shown_connection(one) for one in sessions[:SHOWN]]})


_ROUTE = an_object(("function",), function=TEXT, response=FLAG)
_ROUTES = {"type": "object", "additionalProperties": _ROUTE, "minProperties": 1}
_WISH: dict[str, Any] = {
    "path": TEXT, "stage": TEXT, "selection": TEXT, "public": FLAG, "routes": _ROUTES, "rules": an_object(more=True),
    "connections": {"type": "integer", "minimum": 1, "maximum": CONNECTIONS_MOST},
    "in_flight": {"type": "integer", "minimum": 1, "maximum": IN_FLIGHT_MOST},
}  # fmt: skip
API = an_object(("name", "namespace", *_WISH, "url", "open"), name=TEXT, namespace=TEXT, url=TEXT, open=WHOLE, **_WISH)
_CONNECTION = an_object(
    ("id", "connected_at", "last_active_at", "source_ip"), more=True, id=TEXT, connected_at=TIME, last_active_at=TIME,
    source_ip=TEXT, user_agent=TEXT, received=WHOLE, sent=WHOLE, pending_bytes=WHOLE,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/websockets", listed, "WebSocket APIs",
        {200: an_object(("websockets",), websockets=a_list(API))}, query={"namespace": TEXT},
    ),
    Operation("GET", "/v1/websockets/{name}", read, "One WebSocket API", {200: API}),
    Operation(
        "PUT", "/v1/websockets/{name}", put, "Make or replace one", {200: API, 201: API},
        body=an_object(("routes",), **_WISH),
    ),
    Operation("DELETE", "/v1/websockets/{name}", deleted, "Delete one and close its connections", {204: None}),
    Operation(
        "GET", "/v1/websockets/{name}/connections", connected, "Who is connected, the first 1,000",
        {200: an_object(("open", "connections"), open=WHOLE, connections=a_list(_CONNECTION))},
    ),
)  # fmt: skip
