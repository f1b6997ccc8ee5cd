"""`faas dev`'s own API: a function that is deployed at each save, and goes with the command that keeps it."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.dev import CODE_BYTES, LEASE_SECONDS, SESSION
from faas.errors import InitFailed, InvalidInput
from faas.web import PRINCIPAL, REQUEST_ID, access, error_body, error_headers, held_body, json_body
from gateway.control.operations import (
    FLAG,
    FUNCTION_NAME,
    TEXT,
    TIME,
    Operation,
    a_list,
    a_text,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    stamp,
)
from gateway.dev_sessions import DevSession
from gateway.gateway import GATEWAY, Gateway

_SECONDS = {"type": "number"}
DEV = an_object(
    ("name", "namespace", "url", "by", "since", "public", "lease_seconds"),
    name=TEXT,
    namespace=TEXT,
    url=TEXT,
    by=TEXT,
    since=TIME,
    public=FLAG,
    lease_seconds=_SECONDS,
    inactive=a_list(TEXT),
    check=an_object(("interface", "init_seconds"), interface=TEXT, init_seconds=_SECONDS),
)


def shown(gateway: Gateway, session: DevSession) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": session.name,
        "namespace": session.namespace,
        "url": f"{gateway.info.public_url}/function/{session.label}",
        "by": session.by,
        "since": stamp(session.since),
        "public": session.spec.public,
        "lease_seconds": LEASE_SECONDS,
    }
    if (check := session.check) is not None:
        found["check"] = {"interface": check.interface.value, "init_seconds": check.init_seconds}
    return found


def _session_id(request: web.Request) -> str:
    value = request.query.get("session", "")
    if not SESSION.fullmatch(value):
        raise InvalidInput("session must be 32 hexadecimal digits of the client's choice, the same in all its requests")
    return value


def _not_started(request: web.Request, error: InitFailed) -> web.Response:
    """With what the instance wrote; the session is there."""
    refusal = error_body(error, request[REQUEST_ID])
    refusal["error"]["log_tail"] = error.log_tail
    return web.json_response(refusal, status=error.status, headers=error_headers(error))


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    found = [s for s in gateway.dev.every() if may(request, Permission.READ, s.namespace, s.name)]
    return answer({"dev": [shown(gateway, session) for session in found]})


@access(Permission.CHANGE)
async def opened(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE, dev=True)
    session_id, body = _session_id(request), await json_body(request)
    known_keys(body, "spec", "image")
    if not isinstance(spec := body.get("spec"), dict):
        raise InvalidInput("spec must be an object with faas.toml's keys")
    try:
        session, inactive = await gateway.dev.open(
            where.namespace, where.name, session_id, spec, a_text(body, "image", ""), request[PRINCIPAL]
        )
    except InitFailed as error:
        return _not_started(request, error)
    return answer({**shown(gateway, session), "inactive": list(inactive)})


@access(Permission.CHANGE)
async def pushed(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE, dev=True)
    session_id = _session_id(request)
    gateway.dev.own(where.namespace, where.name, session_id)
    async with held_body(request, CODE_BYTES) as body:
        try:
            session = await gateway.dev.push(where.namespace, where.name, session_id, body)
        except InitFailed as error:
            return _not_started(request, error)
    return answer(shown(gateway, session))


@access(Permission.READ)  # not CHANGE, which is asked below: the audit log would be full of it
async def beaten(request: web.Request) -> web.Response:
    where = function_name(request, Permission.CHANGE, dev=True)
    request.app[GATEWAY].dev.own(where.namespace, where.name, _session_id(request))
    return web.Response(status=204)


@access(Permission.CHANGE)
async def closed(request: web.Request) -> web.Response:
    where = function_name(request, Permission.CHANGE, dev=True)
    await request.app[GATEWAY].dev.close(where.namespace, where.name, _session_id(request))
    return web.Response(status=204)


_PATH, _QUERY = "/v1/dev/{name}", {"session": {"type": "string", "pattern": f"^{SESSION.pattern}$"}}
_WISH = an_object(("spec",), spec=an_object(("name",), more=True, name=FUNCTION_NAME), image=TEXT)
OPERATIONS = (
    Operation(
        "GET", "/v1/dev", listed, "Functions that a faas dev keeps", {200: an_object(("dev",), dev=a_list(DEV))}
    ),
    Operation(
        "PUT", _PATH, opened, "Begin or change a dev function; it ends when nothing is heard of the session",
        {200: DEV}, query=_QUERY, body=_WISH,
    ),
    Operation(
        "PUT", f"{_PATH}/code", pushed, "New code: the body is a gzip of an image layer", {200: DEV}, query=_QUERY
    ),
    Operation("POST", f"{_PATH}/beat", beaten, "The session goes on", {204: None}, query=_QUERY),
    Operation("DELETE", _PATH, closed, "The session ends", {204: None}, query=_QUERY),
)  # fmt: skip
