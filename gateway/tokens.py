"""Tokens: listed by name, made (shown once), revoked. Whoever makes one holds what it grants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission, Principal, Role
from faas.errors import InvalidInput
from faas.web import access, json_body
from gateway.credentials import ROLES
from gateway.gateway import GATEWAY
from gateway.operations import (
    TEXT,
    TIME,
    Operation,
    a_list,
    a_text,
    allow,
    an_object,
    answer,
    known_keys,
    may,
    path_text,
    stamp,
)


@access(Permission.ADMIN)
async def listed(request: web.Request) -> web.Response:
    every = await request.app[GATEWAY].tokens.rows()
    rows = [row for row in every if may(request, Permission.ADMIN, row.principal.namespace)]
    return answer(
        {
            "tokens": [
                {
                    "name": row.principal.name,
                    "role": row.principal.role.value,
                    "namespace": row.principal.namespace,
                    "functions": list(row.principal.functions),
                    "repositories": list(row.principal.repositories),
                    "created_at": stamp(row.created_at),
                }
                for row in rows
            ]
        }
    )


@access(Permission.ADMIN)
async def made(request: web.Request) -> web.Response:
    body = await json_body(request)
    known_keys(body, "name", "role", "namespace", "functions", "repositories")
    functions, repositories = texts(body, "functions"), texts(body, "repositories")
    try:
        role = Role(a_text(body, "role"))
    except ValueError:
        raise InvalidInput("the role must be one of " + ", ".join(role.value for role in ROLES)) from None
    namespace = a_text(body, "namespace", ALL_NAMESPACES)
    principal = Principal(a_text(body, "name"), role, namespace, functions, repositories)
    allow(request, Permission.ADMIN, principal.namespace)  # an administrator of one namespace makes none for others
    token = await request.app[GATEWAY].tokens.create(principal)
    return answer({"name": principal.name, "token": token}, 201)


def texts(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Raises InvalidInput."""
    texts = body.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(f"{key} must be a list of texts")
    return tuple(texts)


@access(Permission.ADMIN)
async def revoked(request: web.Request) -> web.Response:
    tokens, name = request.app[GATEWAY].tokens, path_text(request, "token")
    row = await tokens.named(name)
    allow(request, Permission.ADMIN, row.principal.namespace)
    await tokens.revoke(name)
    return web.Response(status=204)


_TOKEN = an_object(
    ("name", "role", "namespace"), name=TEXT, role=TEXT, namespace=TEXT, functions=a_list(TEXT),
    repositories=a_list(TEXT), created_at=TIME,
)  # fmt: skip
_NEW = an_object(
    ("name", "role"), name=TEXT, role={"type": "string", "enum": [role.value for role in ROLES]}, namespace=TEXT,
    functions=a_list(TEXT), repositories=a_list(TEXT),
)  # fmt: skip
OPERATIONS = (
    Operation("GET", "/v1/tokens", listed, "Tokens, without what opens",
              {200: an_object(("tokens",), tokens=a_list(_TOKEN))}),
    Operation("POST", "/v1/tokens", made, "Make a token; it is shown this once",
              {201: an_object(("name", "token"), name=TEXT, token=TEXT)}, body=_NEW),
    Operation("DELETE", "/v1/tokens/{token}", revoked, "Revoke a token", {204: None}),
)  # fmt: skip
