"""Aliases: names that lead to a revision, or to two with a share of the calls each. `live` is what an unqualified
name means."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput
from faas.web import access, json_body
from gateway.control.operations import (
    FLAG,
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
from gateway.control.revisions import NUMBERS
from gateway.edge.canary import rule
from gateway.edge.canary.shown import shown as canary_shown
from gateway.gateway import GATEWAY
from gateway.router import FunctionState

OPTIONS = ("sticky", "override", "rollback")


def shown(state: FunctionState, alias: str) -> dict[str, Any]:
    """An alias as answers show it; `weights` and what follows it where it has, or had, a second revision."""
    told: dict[str, Any] = {"alias": alias, "revision": state.aliases[alias]}
    canary = state.canaries.get(alias)
    return told if canary is None else told | canary_shown(canary)


@access(Permission.CHANGE)
async def pointed(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE)
    alias, body = path_text(request, "alias"), await json_body(request)
    known_keys(body, "revision", "promote", "weights", *OPTIONS)
    if body.get("promote", False) is not False:
        if body["promote"] is not True or len(body) > 1:
            raise InvalidInput("promote is true, and alone")
        number: int | None = gateway.canaries.promoted(where.namespace, where.name, alias)
    elif "revision" in body or "weights" not in body:
        number = a_number(body, "revision", 1, NUMBERS)
    else:
        number = None
    if "weights" in body:
        rule.weight(body["weights"])  # before anything is done
    elif options := [key for key in OPTIONS if key in body]:
        raise InvalidInput(f"{options[0]} goes with weights", hint='"weights": {"v7": 10}')
    if number is not None:
        await gateway.deployer.point(where.namespace, where.name, alias, number)
    if "weights" in body:
        await gateway.canaries.put(where.namespace, where.name, alias, body)
    return answer(shown(gateway.deployer.known(where.namespace, where.name), alias))


@access(Permission.CHANGE)
async def removed(request: web.Request) -> web.Response:
    where, alias = function_name(request, Permission.CHANGE), path_text(request, "alias")
    await request.app[GATEWAY].deployer.remove_alias(where.namespace, where.name, alias)
    return web.Response(status=204)


_PATH = "/v1/functions/{name}/aliases/{alias}"
_WEIGHTS = {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "number"}}
_ENDED = {"type": ["string", "null"]}
OPERATIONS = (
    Operation(
        "PUT", _PATH, pointed, "Make an alias, move it, or give a second revision a share of its calls",
        {200: an_object(
            ("alias", "revision"), alias=TEXT, revision=WHOLE, weights=_WEIGHTS, sticky=TEXT, override=FLAG,
            rollback=TEXT, began_at=TEXT, ended_at=_ENDED, reason=TEXT,
        )},
        body=an_object(
            revision={"type": "integer", "minimum": 1}, weights=_WEIGHTS, sticky=TEXT, override=FLAG, rollback=TEXT,
            promote=FLAG,
        ),
    ),
    Operation("DELETE", _PATH, removed, "Delete an alias", {204: None}),
)  # fmt: skip
