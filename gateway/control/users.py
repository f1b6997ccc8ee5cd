"""Users over HTTP: made, given roles, removed; and who one is oneself.

An administrator of one namespace manages the roles there, and sees no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from faas.audited import about, within
from faas.auth import ALL_NAMESPACES, Permission, Principal, Role
from faas.errors import Forbidden, InvalidInput
from faas.web import PRINCIPAL, access, json_body
from gateway.accounts import ROLES, checked, no_user
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
    known_keys,
    path_text,
    stamp,
)
from gateway.gateway import GATEWAY
from gateway.store.users import User


def manages(principal: Principal, user: User) -> bool:
    """Whether all that this user has is `principal`'s to give."""
    return all(principal.may(Permission.ADMIN, of) for of in user.roles or (ALL_NAMESPACES,))


def _visible(principal: Principal, user: User) -> dict[str, str] | None:
    """The roles that `principal` may know of; None where the user is none of its business."""
    if principal.may(Permission.ADMIN, ALL_NAMESPACES):
        return {of: role.value for of, role in user.roles.items()}
    shown = {of: role.value for of, role in user.roles.items() if principal.may(Permission.ADMIN, of)}
    return shown or None


def _shown(request: web.Request, user: User) -> dict[str, Any]:
    """Raises NotFound where the caller may not know of it."""
    roles = _visible(request[PRINCIPAL], user)
    if roles is None:
        raise no_user(user.name)
    return {
        "name": user.name,
        "roles": roles,
        "created_at": stamp(user.created_at),
        "created_by": user.created_by,
    }


def _roles(request: web.Request, body: Mapping[str, Any]) -> dict[str, Role | None]:
    """What is to be in which namespace, all of them the caller's to give. Raises InvalidInput, Forbidden."""
    written = body.get("roles", {})
    if not isinstance(written, dict):
        raise InvalidInput('roles must be an object: {"team": "viewer"}; null takes a role away')
    found: dict[str, Role | None] = {}
    for namespace, role in written.items():
        try:
            found[namespace] = None if role is None else Role(role)
        except ValueError:
            raise InvalidInput("a role must be one of " + ", ".join(one.value for one in ROLES)) from None
    checked({namespace: role or Role.VIEWER for namespace, role in found.items()})
    for namespace in found:
        allow(request, Permission.ADMIN, namespace)
    return found


@access(Permission.ADMIN)
async def listed(request: web.Request) -> web.Response:
    principal = request[PRINCIPAL]
    every = request.app[GATEWAY].tokens.users.every()
    return await a_whole_list("users", (_shown(request, one) for one in every if _visible(principal, one) is not None))


@access(Permission.ADMIN)
async def made(request: web.Request) -> web.Response:
    body = await json_body(request)
    known_keys(body, "name", "roles")
    name = a_text(body, "name")
    about(request, f"users/{name}")
    roles = {of: role for of, role in _roles(request, body).items() if role is not None}
    if not roles:
        allow(request, Permission.ADMIN, ALL_NAMESPACES)  # somebody must be able to see and remove it
    user = await request.app[GATEWAY].tokens.users.create(name, roles, request[PRINCIPAL].name)
    return answer(_shown(request, user), 201)


@access(Permission.ADMIN)
async def read(request: web.Request) -> web.Response:
    return answer(_shown(request, request.app[GATEWAY].tokens.users.get(path_text(request, "user"))))


@access(Permission.ADMIN)
async def changed(request: web.Request) -> web.Response:
    body = await json_body(request)
    known_keys(body, "roles")
    users, name = request.app[GATEWAY].tokens.users, path_text(request, "user")
    if not (roles := _roles(request, body)):
        raise InvalidInput('roles must say something: {"team": "viewer"}; null takes a role away')
    user = await users.set_roles(name, roles)
    shown = _visible(request[PRINCIPAL], user) or {}
    return answer({"name": name, "roles": shown})


@access(Permission.ADMIN)
async def removed(request: web.Request) -> web.Response:
    users, principal = request.app[GATEWAY].tokens.users, request[PRINCIPAL]
    user = users.get(path_text(request, "user"))
    _shown(request, user)
    for namespace in user.roles or (ALL_NAMESPACES,):
        within(request, namespace)
    if not manages(principal, user):
        raise Forbidden(
            f"{user.name} has roles that are not yours to take",
            hint=f"take yours: faas user set-role {user.name} none -n NAMESPACE",
        )
    await users.remove(user.name)
    return web.Response(status=204)


@access(Permission.SELF)
async def whoami(request: web.Request) -> web.Response:
    """What the credentials may that came with this."""
    principal = request[PRINCIPAL]
    found = request.app[GATEWAY].tokens.now(principal.credential)
    grants = ((principal.namespace, principal.role),) if principal.grants is None else principal.grants
    return answer(
        {
            "name": principal.name,
            "token": principal.token or None,
            "is_user": principal.grants is not None,
            "roles": {of: role.value for of, role in grants},
            "narrowed": {
                "role": principal.role.value,
                "namespace": principal.namespace,
                "functions": list(principal.functions),
                "repositories": list(principal.repositories),
            },
            "expires_at": stamp(found[1]) if found else None,
        }
    )


_ROLES = {"type": "object", "additionalProperties": {"type": "string", "enum": [role.value for role in ROLES]}}
_CHANGE = {
    "type": "object",
    "additionalProperties": {"anyOf": [{"type": "string", "enum": [role.value for role in ROLES]}, {"type": "null"}]},
}
_USER = an_object(("name", "roles"), name=TEXT, roles=_ROLES, created_at=TIME, created_by=TEXT)
_NARROWED = an_object(
    ("role", "namespace", "functions", "repositories"), role=TEXT, namespace=TEXT, functions=a_list(TEXT),
    repositories=a_list(TEXT),
)  # fmt: skip
_OR_NOTHING = {"type": ["string", "null"]}
OPERATIONS = (
    Operation("GET", "/v1/users", listed, "Users, with their roles", {200: an_object(("users",), users=a_list(_USER))}),
    Operation("POST", "/v1/users", made, "Make a user", {201: _USER},
              body=an_object(("name",), name=TEXT, roles=_ROLES)),
    Operation("GET", "/v1/users/{user}", read, "A user", {200: _USER}),
    Operation("PATCH", "/v1/users/{user}", changed, "Give a user roles, or take them; the others stay", {200: _USER},
              body=an_object(("roles",), roles=_CHANGE)),
    Operation("DELETE", "/v1/users/{user}", removed, "Remove a user, with all its tokens", {204: None}),
    Operation("GET", "/v1/whoami", whoami, "Who one is, and what one may",
              {200: an_object(("name", "token", "is_user", "roles", "narrowed", "expires_at"), name=TEXT,
                              token=_OR_NOTHING, is_user={"type": "boolean"}, roles=_ROLES, narrowed=_NARROWED,
                              expires_at=_OR_NOTHING)}),
)  # fmt: skip
