"""Instances of a function's live revision: listed, and their number set now."""

from __future__ import annotations

from aiohttp import web

from faas.auth import Permission
from faas.web import access, json_body
from gateway.control.functions import instance_shown
from gateway.control.operations import (
    TEXT,
    WHOLE,
    Operation,
    a_list,
    a_number,
    an_object,
    answer,
    function_name,
    known_keys,
)
from gateway.gateway import GATEWAY
from gateway.router import LIVE


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.READ)
    state = gateway.deployer.known(where.namespace, where.name)
    key = state.revisions[state.aliases[LIVE]].key
    return answer({"instances": [instance_shown(instance) for instance in gateway.worker.instances(key)]})


@access(Permission.CHANGE)
async def scaled(request: web.Request) -> web.Response:
    """The autoscaler goes on from there; `scale.max`, or `scale.reserved`, holds."""
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE)
    body = await json_body(request)
    known_keys(body, "instances")
    state = gateway.deployer.known(where.namespace, where.name)
    revision = state.revisions[state.aliases[LIVE]]
    wanted = a_number(body, "instances", 0, revision.spec.scale.limit)
    await gateway.scaler.set_now(revision, wanted)
    return answer({"instances": wanted})


_INSTANCE = an_object(("id", "state"), more=True, id=TEXT, state=TEXT, invocations=WHOLE, memory_bytes=WHOLE)
_COUNT = {"type": "integer", "minimum": 0}
OPERATIONS = (
    Operation(
        "GET", "/v1/functions/{name}/instances", listed, "Instances of the live revision",
        {200: an_object(("instances",), instances=a_list(_INSTANCE))},
    ),
    Operation(
        "POST", "/v1/functions/{name}/scale", scaled, "Set the number of instances now",
        {200: an_object(("instances",), instances=WHOLE)}, body=an_object(("instances",), instances=_COUNT),
    ),
)  # fmt: skip
