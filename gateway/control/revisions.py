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
        rows = await revisions.of_function(tx, where.namespace, where.name)
    return answer(
        {
            "revisions": [
                {
                    "number": row.revision.key.number,
                    "image": row.revision.image,
                    "created_at": stamp(row.created_at),
                    "interface": row.revision.interface.value,
                    "aliases": sorted(a for a, number in state.aliases.items() if number == row.revision.key.number),
                    "created_by": row.created_by,
                }
                for row in reversed(rows)
            ]
        }
    )


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
