"""Dead letters: events that were given up. Read, tried again, or deleted."""

from __future__ import annotations

import base64
import dataclasses
import time
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput, NotFound
from faas.spec import NAME_PATTERN, is_namespace
from faas.state.session import Tx
from faas.web import PRINCIPAL, access
from gateway.control.operations import (
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    a_whole_list,
    allow,
    an_object,
    answer,
    may,
    namespace_asked,
    path_text,
    stamp,
)
from gateway.gateway import GATEWAY
from gateway.router import parse_name
from gateway.store import dead_letters, invocations
from gateway.store.dead_letters import DeadLetter
from gateway.store.invocations import PENDING, QueuedEvent


def _shown(letter: DeadLetter) -> dict[str, Any]:
    event = letter.event
    return {
        "id": event.id,
        "function": event.function,
        "namespace": event.namespace,
        "trigger": event.trigger.value,
        "kind": event.kind.value,
        "error_type": event.error_type,
        "error_message": event.error_message,
        "attempts": event.attempts,
        "created_at": stamp(event.created_at),
        "died_at": stamp(letter.died_at),
        "size": letter.size,
    }


async def _letter(request: web.Request, permission: Permission) -> DeadLetter:
    """The letter that the path names. Raises NotFound, Forbidden."""
    async with request.app[GATEWAY].database.read() as tx:
        letter = await tx.run_sync(dead_letters.get, path_text(request, "id"))
    if letter is None:
        raise NotFound("there is no such dead letter", hint="see faas dlq ls")
    allow(request, permission, letter.event.namespace, letter.event.function)
    return letter


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    namespace, function = namespace_asked(request), ""
    if written := request.query.get("function", ""):
        namespace, function, _ = parse_name(written)
        if not NAME_PATTERN.fullmatch(function) or not is_namespace(namespace):
            raise InvalidInput("function must be a function's name")
        allow(request, Permission.READ, namespace, function)
    own = request[PRINCIPAL].where(Permission.READ)
    # Asked of the database: behind others' newest the caller's own would not be found.
    asked = [""] if own is None else sorted(own)
    async with request.app[GATEWAY].database.read() as tx:
        found = [await tx.run_sync(dead_letters.every, of, function) for of in ([namespace] if namespace else asked)]
    letters = sorted((letter for some in found for letter in some), key=lambda letter: -letter.died_at)
    visible = (x for x in letters if may(request, Permission.READ, x.event.namespace, x.event.function))
    return await a_whole_list("dead_letters", (_shown(letter) for letter in visible))


@access(Permission.READ)
async def read(request: web.Request) -> web.Response:
    letter = await _letter(request, Permission.READ)
    payload = base64.b64encode(letter.event.payload).decode()
    return answer(_shown(letter) | {"payload": payload, "meta": _without_headers(letter)})


def _without_headers(letter: DeadLetter) -> dict[str, Any]:
    """What else the event holds, but not a request's header fields: they may carry credentials."""
    return {key: value for key, value in letter.event.meta.items() if key != "fields"}


@access(Permission.CHANGE)
async def retried(request: web.Request) -> web.Response:
    """The event goes back to the queue as if it were new; one transaction, so that it is never in both or neither."""
    gateway, letter = request.app[GATEWAY], await _letter(request, Permission.CHANGE)
    event = dataclasses.replace(
        letter.event, status=PENDING, attempts=0, not_before=0.0, created_at=time.time(), error_type="",
        error_message="",
    )  # fmt: skip

    def again(tx: Tx) -> list[QueuedEvent]:
        if not dead_letters.remove(tx, event.id):
            raise NotFound("the dead letter has been retried or deleted meanwhile")
        invocations.remove(tx, event.id)  # its own old row, which says that it failed
        return [event]

    await gateway.dispatcher.commit(again)
    return answer({"id": event.id}, 202)


@access(Permission.CHANGE)
async def deleted(request: web.Request) -> web.Response:
    letter = await _letter(request, Permission.CHANGE)
    async with request.app[GATEWAY].database.write() as tx:
        await tx.run_sync(dead_letters.remove, letter.event.id)
    return web.Response(status=204)


_LETTER = an_object(
    ("id", "function", "namespace", "error_type"), more=True, id=TEXT, function=TEXT, namespace=TEXT, error_type=TEXT,
    error_message=TEXT, attempts=WHOLE, created_at=TIME, died_at=TIME, size=WHOLE,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "GET", "/v1/dead-letters", listed, "Events that were given up, newest first",
        {200: an_object(("dead_letters",), dead_letters=a_list(_LETTER))}, query={"function": TEXT, "namespace": TEXT},
    ),
    Operation("GET", "/v1/dead-letters/{id}", read, "One dead letter, its payload in base64", {200: _LETTER}),
    Operation("POST", "/v1/dead-letters/{id}/retry", retried, "Queue it again", {202: an_object(("id",), id=TEXT)}),
    Operation("DELETE", "/v1/dead-letters/{id}", deleted, "Delete it for good", {204: None}),
)  # fmt: skip
