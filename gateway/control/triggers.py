"""Folder triggers of all functions, and whether their folders can be watched."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission
from faas.web import access
from gateway.control.operations import TEXT, Operation, a_list, a_whole_list, an_object, may, namespace_asked
from gateway.gateway import GATEWAY
from gateway.store import triggers


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, namespace = request.app[GATEWAY], namespace_asked(request)
    async with gateway.database.read() as tx:
        rows = await tx.run_sync(triggers.every)
    found = (
        {
            "function": row.function,
            "namespace": row.namespace,
            "kind": "folder",
            "watch": row.spec.watch,
            "pattern": row.spec.pattern,
            "problem": gateway.folders.problem(row),
        }
        for row in rows
        if namespace in ("", row.namespace) and may(request, Permission.READ, row.namespace, row.function)
    )
    return await a_whole_list("triggers", found)


_TRIGGER = an_object(
    ("function", "namespace", "watch", "pattern"), function=TEXT, namespace=TEXT, kind=TEXT, watch=TEXT, pattern=TEXT,
    problem=TEXT,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/triggers", listed, "Watched folders", {200: an_object(("triggers",), triggers=a_list(_TRIGGER))},
        query={"namespace": TEXT},
    ),
)  # fmt: skip
