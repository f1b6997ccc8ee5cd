"""Notifications: who is told of what goes wrong; targets set, tested, removed. No answer has a secret in it but the one
that was made for a webhook's signatures, once."""

from __future__ import annotations

import dataclasses
import secrets as random
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from faas import secret
from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import Conflict, FaasError, InvalidInput, NotFound
from faas.secret import Secret
from faas.web import PRINCIPAL, access, json_body
from gateway.control.operations import (
    FLAG,
    TEXT,
    WHOLE,
    FunctionName,
    Operation,
    a_list,
    allow,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    namespace_asked,
    stamp,
)
from gateway.gateway import GATEWAY, Gateway
from gateway.notify.keeper import Watched
from gateway.notify.states import REPEAT_SECONDS
from gateway.notify.subjects import Kind
from gateway.notify.target import CA_CHARACTERS, ERRORS, MOST_RECEIVERS, REPEATS, Security, Target, Webhook, parse

BODY_BYTES = 2 * CA_CHARACTERS


def shown(watched: Watched) -> dict[str, Any]:
    target = watched.target
    return {
        "name": target.name,
        "namespace": target.namespace,
        "everywhere": target.everywhere,
        "on": [kind.value for kind in Kind if kind in target.on],
        "errors": target.errors,
        "repeat": target.repeat,
        target.kind: _way(target),
        "firing": watched.firing,
        "sent_at": stamp(watched.sent_at or None),
        "error": watched.error or None,
    }


def _way(target: Target) -> dict[str, Any]:
    way = target.way
    if isinstance(way, Webhook):
        parts = urlsplit(way.url)
        origin = f"{parts.scheme}://{parts.netloc}/…" if way.url else None  # the path may be all that guards it
        return {"url": origin, "url_secret": way.url_secret or None, "signing_secret": way.signing_secret}
    server = f"[{way.host}]" if ":" in way.host else way.host
    return {
        "server": f"{server}:{way.port}",
        "security": way.security.value,
        "sender": way.sender,
        "to": list(way.to),
        "user": way.user or None,
        "password_secret": way.password_secret or None,
    }


def _allow_everywhere(request: web.Request, target: Target) -> None:
    """What hears of everybody is for administrators of everything. Raises Forbidden."""
    if target.everywhere:
        allow(request, Permission.ADMIN, ALL_NAMESPACES)


def _named(request: web.Request) -> tuple[FunctionName, Watched]:
    """Raises NotFound, Forbidden."""
    where = function_name(request, Permission.ADMIN)
    watched = request.app[GATEWAY].notifications.get(where.namespace, where.name)
    _allow_everywhere(request, watched.target)
    return where, watched


@access(Permission.ADMIN)
async def listed(request: web.Request) -> web.Response:
    namespace = namespace_asked(request)
    found = [
        shown(one)
        for one in request.app[GATEWAY].notifications.every()
        if namespace in ("", one.target.namespace)
        and may(request, Permission.ADMIN, ALL_NAMESPACES if one.target.everywhere else one.target.namespace)
    ]
    return answer({"targets": found})


@access(Permission.ADMIN)
async def read(request: web.Request) -> web.Response:
    return answer(shown(_named(request)[1]))


@access(Permission.ADMIN)
async def put(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.ADMIN)
    keeper = gateway.notifications
    before = next((one.target for one in keeper.every() if one.target.place == (where.namespace, where.name)), None)
    if before is not None:
        _allow_everywhere(request, before)
    body = await json_body(request, BODY_BYTES)
    target = parse(where.namespace, where.name, body, allow_private=keeper.senders.allow_private)
    _allow_everywhere(request, target)
    for name in target.way.secrets:
        _check_secret(gateway, target, name)
    target, made = await _signed(gateway, target, before, request[PRINCIPAL].name)
    try:
        is_new = await keeper.put(target)
    except FaasError:
        if made:
            await _forget_secret(gateway, target, None)
        raise
    if before is not None:
        await _forget_secret(gateway, before, target)
    told = shown(keeper.get(where.namespace, where.name))
    return answer(told | ({"secret": made} if made else {}), 201 if is_new else 200)


async def _signed(gateway: Gateway, target: Target, before: Target | None, by: str) -> tuple[Target, str]:
    """A webhook with a secret to sign with, and that secret where it had to be made. Raises Conflict."""
    way = target.way
    if not isinstance(way, Webhook) or way.signing_secret:
        return target, ""
    if before is not None and isinstance(before.way, Webhook):  # it goes on with what its receiver knows
        old = before.way
        way = dataclasses.replace(way, signing_secret=old.signing_secret, own_secret=old.own_secret)
        return dataclasses.replace(target, way=way), ""
    name = f"notify-{target.name}"
    if not secret.NAME_PATTERN.fullmatch(name):
        raise InvalidInput("the target's name is too long for the name of its own secret", hint="signing_secret")
    try:
        gateway.secrets.get(target.namespace, name)
    except NotFound:
        pass
    else:
        raise Conflict(f"there is a secret {name} already", hint="name it as signing_secret, or remove it")
    made = random.token_urlsafe(32)
    await gateway.secrets.set(target.namespace, name, Secret(made), by, now=False)
    way = dataclasses.replace(way, signing_secret=name, own_secret=True)
    return dataclasses.replace(target, way=way), made


def _check_secret(gateway: Gateway, target: Target, name: str) -> None:
    """Raises InvalidInput where it is not there."""
    try:
        gateway.secrets.get(target.namespace, name)
    except NotFound as error:
        raise InvalidInput(error.message, hint=f"faas secret set {name}") from None


async def _forget_secret(gateway: Gateway, before: Target, now: Target | None) -> None:
    """Remove the one that was made for it, where nobody has any use for it."""
    way = before.way
    if isinstance(way, Webhook) and way.own_secret and (now is None or way.signing_secret not in now.way.secrets):
        try:
            await gateway.secrets.remove(before.namespace, way.signing_secret, force=False)
        except FaasError:
            return  # a function has it, or somebody has removed it


@access(Permission.ADMIN)
async def deleted(request: web.Request) -> web.Response:
    where, watched = _named(request)
    gateway, target = request.app[GATEWAY], watched.target
    await gateway.notifications.remove(where.namespace, where.name)
    await _forget_secret(gateway, target, None)
    return web.Response(status=204)


@access(Permission.ADMIN)
async def tested(request: web.Request) -> web.Response:
    where, _ = _named(request)
    known_keys(await json_body(request))
    await request.app[GATEWAY].notifications.test(where.namespace, where.name)
    return answer({"sent": True})


_KINDS = a_list({"type": "string", "enum": [kind.value for kind in Kind]})
_SECURITY = {"type": "string", "enum": [one.value for one in Security]}
_TARGET = an_object(
    ("name", "namespace", "everywhere", "on", "errors", "repeat", "firing"), more=True, name=TEXT, namespace=TEXT,
    everywhere=FLAG, on=_KINDS, errors=WHOLE, repeat=WHOLE, firing=WHOLE, webhook=an_object(more=True),
    mail=an_object(more=True), secret=TEXT,
)  # fmt: skip
_WISH = an_object(
    webhook=an_object(url=TEXT, url_secret=TEXT, signing_secret=TEXT, ca=TEXT),
    mail=an_object(
        ("server", "sender", "to"), server=TEXT, security=_SECURITY, sender=TEXT, user=TEXT, password_secret=TEXT,
        ca=TEXT, to={"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_RECEIVERS},
    ),
    on=_KINDS, everywhere=FLAG, errors={"type": "integer", "minimum": 1, "maximum": 100, "default": ERRORS},
    repeat={"type": "integer", "minimum": REPEATS[0], "maximum": REPEATS[1], "default": REPEAT_SECONDS},
)  # fmt: skip
_PATH = "/v1/notifications/{name}"
OPERATIONS = (
    Operation("GET", "/v1/notifications", listed, "Who is told of what goes wrong",
              {200: an_object(("targets",), targets=a_list(_TARGET))}, query={"namespace": TEXT}),
    Operation("GET", _PATH, read, "One target", {200: _TARGET}),
    Operation("PUT", _PATH, put, "Set one: a `webhook` or `mail`; `secret` is shown once", {200: _TARGET, 201: _TARGET},
              body=_WISH),
    Operation("DELETE", _PATH, deleted, "Remove one", {204: None}),
    Operation("POST", _PATH + "/test", tested, "Send it a message that says it is a test",
              {200: an_object(("sent",), sent=FLAG)}, body=an_object()),
)  # fmt: skip
