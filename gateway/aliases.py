"""Aliases: names that lead to one revision. `live` is what an unqualified name means."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission
from faas.web import access, json_body
from gateway.gateway import GATEWAY
from gateway.operations import (
    TEXT,
    WHOLE,
    Operation,
    a_number,
    an_object,
    answer,
    function_name,
    known_keys,
    path_text,
)
from gateway.revisions import NUMBERS


@access(Permission.CHANGE)
async def pointed(request: web.Request) -> web.Response:
    where, alias = function_name(request, Permission.CHANGE), path_text(request, "alias")
    body = await json_body(request)
    known_keys(body, "revision")
    number = a_number(body, "revision", 1, NUMBERS)
    await request.app[GATEWAY].deployer.point(where.namespace, where.name, alias, number)
    return answer({"alias": alias, "revision": number})


@access(Permission.CHANGE)
async def removed(request: web.Request) -> web.Response:
    where, alias = function_name(request, Permission.CHANGE), path_text(request, "alias")
    await request.app[GATEWAY].deployer.remove_alias(where.namespace, where.name, alias)
    return web.Response(status=204)


_PATH = "/v1/functions/{name}/aliases/{alias}"
OPERATIONS = (
    Operation(
        "PUT", _PATH, pointed, "Make an alias, or move it",
        {200: an_object(("alias", "revision"), alias=TEXT, revision=WHOLE)},
        body=an_object(("revision",), revision={"type": "integer", "minimum": 1}),
    ),
    Operation("DELETE", _PATH, removed, "Delete an alias", {204: None}),
)  # fmt: skip
