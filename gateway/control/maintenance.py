"""Maintenance: what is not served for a while; listed, begun, ended."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import InvalidInput
from faas.web import PRINCIPAL, access, json_body
from gateway.control.operations import (
    FLAG,
    TEXT,
    WHOLE,
    FunctionName,
    Operation,
    a_list,
    a_number,
    a_text,
    allow,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    stamp,
)
from gateway.edge.maintenance import EVERYTHING
from gateway.gateway import GATEWAY
from gateway.store.maintenance import Notice

MESSAGE = "this is being worked on; try again later"
MESSAGE_MOST = 500  # characters
RETRY_SECONDS = 60
RETRY_MOST = 86_400


def shown(notice: Notice) -> dict[str, Any]:
    everything = notice.function == EVERYTHING
    return {
        "name": EVERYTHING if everything else notice.function,
        "namespace": EVERYTHING if everything else notice.namespace,
        "all": everything,
        "message": notice.message,
        "retry_after": notice.retry_after,
        "since": stamp(notice.since),
        "by": notice.by,
    }


def _where(request: web.Request) -> FunctionName:
    """A function that the caller may change; or everything, which takes an administrator of everything."""
    if request.match_info["name"] == EVERYTHING:
        allow(request, Permission.ADMIN, ALL_NAMESPACES)
        return FunctionName(EVERYTHING, EVERYTHING)
    return function_name(request, Permission.CHANGE)


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    """Everybody who may read anything sees what holds for everything."""
    found = [
        shown(notice)
        for notice in request.app[GATEWAY].edge.maintenance.every()
        if notice.function == EVERYTHING or may(request, Permission.READ, notice.namespace, notice.function)
    ]
    return answer({"maintenance": found})


@access(Permission.CHANGE)
async def begun(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], _where(request)
    body = await json_body(request)
    known_keys(body, "message", "retry_after")
    message = a_text(body, "message", MESSAGE) or MESSAGE
    if len(message) > MESSAGE_MOST or not message.isprintable():
        raise InvalidInput(f"message must be one line of at most {MESSAGE_MOST} characters")
    retry_after = a_number(body, "retry_after", 1, RETRY_MOST) if "retry_after" in body else RETRY_SECONDS
    if where.name != EVERYTHING:
        gateway.deployer.known(where.namespace, where.name)
    by = request[PRINCIPAL].name
    notice = Notice(where.namespace, where.name, message, retry_after, time.time(), by)
    is_new = await gateway.edge.maintenance.put(notice)
    return answer(shown(notice), 201 if is_new else 200)


@access(Permission.CHANGE)
async def ended(request: web.Request) -> web.Response:
    where = _where(request)
    await request.app[GATEWAY].edge.maintenance.remove(where.namespace, where.name)
    return web.Response(status=204)


NOTICE = an_object(
    ("name", "namespace", "all", "message", "retry_after", "since", "by"), name=TEXT, namespace=TEXT, all=FLAG,
    message=TEXT, retry_after=WHOLE, since=TEXT, by=TEXT,
)  # fmt: skip
_WISH = an_object(
    message={"type": "string", "maxLength": MESSAGE_MOST},
    retry_after={"type": "integer", "minimum": 1, "maximum": RETRY_MOST},
)
OPERATIONS = (
    Operation(
        "GET", "/v1/maintenance", listed, "What is not served now",
        {200: an_object(("maintenance",), maintenance=a_list(NOTICE))},
    ),
    Operation(
        "PUT", "/v1/maintenance/{name}", begun, "Answer requests to a function, or to everything (`*`), with 503",
        {200: NOTICE, 201: NOTICE}, body=_WISH,
    ),
    Operation("DELETE", "/v1/maintenance/{name}", ended, "Serve it again", {204: None}),
)  # fmt: skip
