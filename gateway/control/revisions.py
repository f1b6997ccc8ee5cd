"""Revisions of a function, and going back to an earlier one."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission
from faas.web import access, json_body
from gateway.control.functions import FUNCTION, one
from gateway.control.operations import (
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    a_number,
    a_whole_list,
    an_object,
    answer,
    function_name,
    known_keys,
    stamp,
)
from gateway.gateway import GATEWAY
from gateway.router import LIVE
from gateway.store import revisions

NUMBERS = 2**31 - 1


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.READ)
    state = gateway.deployer.known(where.namespace, where.name)
    async with gateway.database.read() as tx:
        made = await revisions.made(tx, where.namespace, where.name)
    aliases: dict[int, list[str]] = {}
    for alias, number in sorted(state.aliases.items()):
        aliases.setdefault(number, []).append(alias)
    found = (
        {
            "number": number,
            "image": revision.image,
            "created_at": stamp(made[number][0]),
            "interface": revision.interface.value,
            "aliases": aliases.get(number, []),
            "created_by": made[number][1],
        }
        for number, revision in sorted(state.revisions.items(), reverse=True)
        if number in made
    )
    return await a_whole_list("revisions", found)


@access(Permission.CHANGE)
async def rolled_back(request: web.Request) -> web.Response:
    where = function_name(request, Permission.CHANGE)
    body = await json_body(request)
    known_keys(body, "to")
    number = None if body.get("to") is None else a_number(body, "to", 1, NUMBERS)
    await request.app[GATEWAY].deployer.point(where.namespace, where.name, LIVE, number)
    return answer(await one(request, where.namespace, where.name))


_REVISION = an_object(
    ("number", "image"), number=WHOLE, image=TEXT, created_at=TIME, interface=TEXT, aliases=a_list(TEXT),
    created_by=TEXT,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/functions/{name}/revisions", listed, "The revisions that are kept, newest first",
        {200: an_object(("revisions",), revisions=a_list(_REVISION))},
    ),
    Operation(
        "POST", "/v1/functions/{name}/rollback", rolled_back, "Move live to a revision, or to the one before",
        {200: FUNCTION}, body=an_object(to={"type": ["integer", "null"], "minimum": 1}),
    ),
)  # fmt: skip
