"""Secrets: listed by name, set, removed; and the key that seals them. A value goes in and never comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from faas import secret
from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import InvalidInput
from faas.protocol import RevisionKey
from faas.spec import is_namespace
from faas.web import PRINCIPAL, access, json_body
from gateway.control.operations import (
    FLAG,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    a_whole_list,
    allow,
    an_object,
    answer,
    known_keys,
    may,
    namespace_asked,
    stamp,
)
from gateway.gateway import GATEWAY
from gateway.router import function_label, parse_name
from gateway.secret_store import SecretStore
from gateway.store.secrets import Sealed

BODY_BYTES = 6 * secret.VALUE_BYTES + 1024  # a character of a JSON text takes six at most


def _store(request: web.Request) -> SecretStore:
    return request.app[GATEWAY].secrets


def _place(request: web.Request, permission: Permission) -> tuple[str, str]:
    """(namespace, name) of the secret that the path names, once the caller is seen to hold `permission` on all of its
    namespace. Raises Unauthenticated, Forbidden, InvalidInput."""
    namespace, name, more = parse_name(request.match_info["name"])
    if more or not secret.NAME_PATTERN.fullmatch(name) or not is_namespace(namespace):
        raise InvalidInput("not a secret's name", hint=f"name, or name.namespace; {secret.NAME_WORDS}")
    allow(request, permission, namespace)
    return namespace, name


def _functions(users: Iterable[RevisionKey]) -> list[str]:
    return sorted({function_label(key.namespace, key.function) for key in users})


def shown(store: SecretStore, row: Sealed, users: Iterable[RevisionKey]) -> dict[str, Any]:
    return {
        "name": row.name,
        "namespace": row.namespace,
        "version": row.version,
        "set_at": stamp(row.set_at),
        "set_by": row.set_by,
        "state": "ready" if store.is_readable(row) else "unreadable",
        "functions": _functions(users),
    }


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    store, namespace = _store(request), namespace_asked(request)
    users = store.users()
    found = (
        shown(store, row, users.get(row.place, ()))
        for row in store.every()
        if namespace in ("", row.namespace) and may(request, Permission.READ, row.namespace)
    )
    return await a_whole_list("secrets", found)


@access(Permission.READ)
async def read(request: web.Request) -> web.Response:
    store = _store(request)
    row = store.get(*_place(request, Permission.READ))
    return answer(shown(store, row, store.users().get(row.place, ())))


@access(Permission.CHANGE)
async def put(request: web.Request) -> web.Response:
    store, (namespace, name) = _store(request), _place(request, Permission.CHANGE)
    body = await json_body(request, BODY_BYTES)
    known_keys(body, "value", "now")
    now = body.get("now", False)
    if not isinstance(now, bool):
        raise InvalidInput("now must be true or false")
    try:
        value = secret.checked_value(body.get("value"))
    except ValueError as error:
        raise InvalidInput(f"value must be {error}") from None
    row, renewals = await store.set(namespace, name, value, request[PRINCIPAL].name, now=now)
    told = shown(store, row, store.users().get(row.place, ()))
    told["replaced"] = [{"revision": str(one.key), "instances": one.instances} for one in renewals if not one.error]
    told["kept"] = [{"revision": str(one.key), "error": one.error} for one in renewals if one.error]
    return answer(told, 201 if row.version == 1 else 200)


@access(Permission.CHANGE)
async def deleted(request: web.Request) -> web.Response:
    namespace, name = _place(request, Permission.CHANGE)
    force = request.query.get("force", "")
    if force not in ("", "0", "1"):
        raise InvalidInput("force must be 0 or 1")
    await _store(request).remove(namespace, name, force=force == "1")
    return web.Response(status=204)


@access(Permission.ADMIN)
async def key_rotated(request: web.Request) -> web.Response:
    allow(request, Permission.ADMIN, ALL_NAMESPACES)  # all secrets of a server have one key
    known_keys(await json_body(request))
    return answer({"secrets": await _store(request).rotate_key()})


_SECRET = an_object(
    ("name", "namespace", "version", "set_by", "state", "functions"), more=True, name=TEXT, namespace=TEXT,
    version=WHOLE, set_at=TIME, set_by=TEXT, state={"type": "string", "enum": ["ready", "unreadable"]},
    functions=a_list(TEXT), replaced=a_list(an_object(("revision", "instances"), revision=TEXT, instances=WHOLE)),
    kept=a_list(an_object(("revision", "error"), revision=TEXT, error=TEXT)),
)  # fmt: skip
_VALUE = {"type": "string", "minLength": 1, "maxLength": secret.VALUE_BYTES, "writeOnly": True}
_PATH = "/v1/secrets/{name}"
OPERATIONS = (
    Operation("GET", "/v1/secrets", listed, "Secrets by name, and who uses them; never a value",
              {200: an_object(("secrets",), secrets=a_list(_SECRET))}, query={"namespace": TEXT}),
    Operation("GET", _PATH, read, "One secret, without its value", {200: _SECRET}),
    Operation("PUT", _PATH, put, "Set a secret; `now` replaces the instances that have the old value",
              {200: _SECRET, 201: _SECRET}, body=an_object(("value",), value=_VALUE, now=FLAG)),
    Operation("DELETE", _PATH, deleted, "Remove a secret that no function uses; `force=1`: whoever does",
              {204: None}, query={"force": {"type": "string", "enum": ["0", "1"]}}),
    Operation("POST", "/v1/secrets-key/rotate", key_rotated, "Seal all secrets with a new key",
              {200: an_object(("secrets",), secrets=WHOLE)}, body=an_object()),
)  # fmt: skip
