"""API keys: listed, made (shown once), rotated, given another plan, revoked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from aiohttp import web

from faas.auth import Permission, Principal, Role
from faas.checks import parse_duration
from faas.errors import InvalidInput
from faas.web import access, json_body
from gateway.api_keys import OVERLAP, KeyStore, Made
from gateway.control.operations import (
    TEXT,
    TIME,
    Operation,
    a_list,
    a_text,
    a_whole_list,
    allow,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    namespace_asked,
    stamp,
)
from gateway.control.tokens import texts
from gateway.gateway import GATEWAY
from gateway.router import DEFAULT_NAMESPACE
from gateway.store.api_keys import ApiKey


def _keys(request: web.Request) -> KeyStore:
    return request.app[GATEWAY].edge.keys


def shown(key: ApiKey, now: float) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.principal.name,
        "namespace": key.principal.namespace,
        "functions": list(key.principal.functions),
        "plan": key.plan or None,
        "state": "active" if key.lives(now) else "expired",
        "created_at": stamp(key.created_at),
        "expires_at": stamp(key.expires_at),
        "last_used_at": stamp(key.last_used_at),
        "secrets": [
            {"created_at": stamp(one.created_at), "expires_at": stamp(one.expires_at)}
            for one in key.secrets
            if one.lives(now)
        ],
    }


@access(Permission.ADMIN)
async def listed(request: web.Request) -> web.Response:
    namespace, now = namespace_asked(request), time.time()
    found = (
        shown(key, now)
        for key in _keys(request).every()
        if namespace in ("", key.principal.namespace) and may(request, Permission.ADMIN, key.principal.namespace)
    )
    return await a_whole_list("keys", found)


@access(Permission.ADMIN)
async def made(request: web.Request) -> web.Response:
    body = await json_body(request)
    known_keys(body, "name", "namespace", "functions", "plan", "expires")
    namespace = a_text(body, "namespace", DEFAULT_NAMESPACE)
    principal = Principal(a_text(body, "name"), Role.CALLER, namespace, texts(body, "functions"))
    allow(request, Permission.ADMIN, namespace)
    lifetime = _duration(body, "expires") if body.get("expires") not in (None, "") else None
    plan = a_text(body, "plan", "")
    if plan:
        request.app[GATEWAY].edge.guards.plans.get(namespace, plan)
    key = await _keys(request).create(principal, plan=plan, lifetime=lifetime)
    return answer(_once(key), 201)


@access(Permission.ADMIN)
async def rotated(request: web.Request) -> web.Response:
    where = function_name(request, Permission.ADMIN)
    body = await json_body(request)
    known_keys(body, "overlap")
    overlap = _duration(body, "overlap") if "overlap" in body else OVERLAP
    return answer(_once(await _keys(request).rotate(where.namespace, where.name, overlap)))


@access(Permission.ADMIN)
async def changed(request: web.Request) -> web.Response:
    where = function_name(request, Permission.ADMIN)
    body = await json_body(request)
    known_keys(body, "plan")
    if "plan" not in body:
        raise InvalidInput("plan is missing", hint='the name of a usage plan, or "" for none')
    plan = a_text(body, "plan", "")
    if plan:
        request.app[GATEWAY].edge.guards.plans.get(where.namespace, plan)
    key = await _keys(request).put_plan(where.namespace, where.name, plan)
    return answer(shown(key, time.time()))


@access(Permission.ADMIN)
async def revoked(request: web.Request) -> web.Response:
    where = function_name(request, Permission.ADMIN)
    await _keys(request).revoke(where.namespace, where.name)
    return web.Response(status=204)


def _once(made: Made) -> dict[str, Any]:
    old = made.key.secrets[1:]
    return {
        "id": made.key.id,
        "name": made.key.principal.name,
        "namespace": made.key.principal.namespace,
        "key": made.secret,
        "expires_at": stamp(made.key.expires_at),
        "previous_expires_at": stamp(old[0].expires_at) if old else None,
    }


def _duration(body: Mapping[str, Any], key: str) -> timedelta:
    """Raises InvalidInput."""
    try:
        return parse_duration(body[key])
    except ValueError as error:
        raise InvalidInput(f"{key} must be {error}") from None


_KEY = an_object(
    ("id", "name", "namespace", "functions", "state", "secrets"), more=True, id=TEXT, name=TEXT, namespace=TEXT,
    functions=a_list(TEXT), state={"type": "string", "enum": ["active", "expired"]}, created_at=TIME,
    secrets=a_list(an_object(("created_at",), more=True, created_at=TIME)),
)  # fmt: skip
_ONCE = an_object(("id", "name", "namespace", "key"), more=True, id=TEXT, name=TEXT, namespace=TEXT, key=TEXT)
_SPAN = {"type": ["string", "number"], "description": 'such as "90d"; a number is seconds'}
_NEW = an_object(("name",), name=TEXT, namespace=TEXT, functions=a_list(TEXT), plan=TEXT, expires=_SPAN)
OPERATIONS = (
    Operation("GET", "/v1/keys", listed, "API keys, without what opens", {200: an_object(("keys",), keys=a_list(_KEY))},
              query={"namespace": TEXT}),
    Operation("POST", "/v1/keys", made, "Make an API key; it is shown this once", {201: _ONCE}, body=_NEW),
    Operation("POST", "/v1/keys/{name}/rotate", rotated, "A new secret, shown this once; the old one lives on a while",
              {200: _ONCE}, body=an_object(overlap=_SPAN)),
    Operation("PATCH", "/v1/keys/{name}", changed, "Give an API key another usage plan, or none; it opens on",
              {200: _KEY}, body=an_object(("plan",), plan=TEXT)),
    Operation("DELETE", "/v1/keys/{name}", revoked, "Revoke an API key", {204: None}),
)  # fmt: skip
