"""Tokens: listed by name, made (shown once), rotated, revoked. Whoever makes one holds what it grants.

Users make their own; administrators of a namespace those that stand alone in it, and those of its users.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from aiohttp import web

from faas import patterns
from faas.audited import about, within
from faas.auth import ALL_NAMESPACES, GRANTS, Permission, Principal, Role
from faas.checks import parse_duration
from faas.errors import Forbidden, InvalidInput, Throttled
from faas.web import PRINCIPAL, access, json_body, require
from gateway.accounts import ROLES, no_user
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
from gateway.control.users import manages
from gateway.credentials import GRACE, TokenStore, no_token
from gateway.edge.throttle import retry_after
from gateway.gateway import GATEWAY
from gateway.store.tokens import TokenRow


def reaches(maker: Principal, wish: Principal) -> str:
    """Why `maker` cannot give what `wish` says; "" where it can. Pure: whatever a narrowed token makes is as narrow."""
    if not GRANTS[wish.role] <= GRANTS[maker.role]:
        return f"your token is a {maker.role.value}'s: it makes no {wish.role.value}'s"
    if maker.namespace not in (ALL_NAMESPACES, wish.namespace):
        return f"your token is for the namespace {maker.namespace}"
    for what, mine, wished in (
        ("functions", maker.functions, wish.functions),
        ("repositories", maker.repositories, wish.repositories),
    ):
        if mine and not (wished and all(_covered(mine, pattern) for pattern in wished)):
            return f"your token is for the {what} {', '.join(mine)}: name some of these"
    return ""


def _covered(mine: Iterable[str], pattern: str) -> bool:
    return any(pattern == one or ("*" not in pattern and patterns.fits(one, pattern)) for one in mine)


def _mine(principal: Principal, row: TokenRow) -> bool:
    """One's own token, or another of the same user's that can do no more."""
    if row.name == principal.credential:
        return True
    return principal.grants is not None and row.user == principal.name


def _administers(tokens: TokenStore, principal: Principal, row: TokenRow) -> bool:
    if not row.user:
        return principal.may(Permission.ADMIN, row.principal.namespace)
    user = tokens.users.find(row.user)
    return principal.may(Permission.ADMIN, ALL_NAMESPACES) if user is None else manages(principal, user)


def _shown(tokens: TokenStore, row: TokenRow, now: float) -> dict[str, Any]:
    user = tokens.users.find(row.user) if row.user else None
    return {
        "name": row.name,
        "user": row.user or None,
        "role": row.principal.role.value,
        "namespace": row.principal.namespace,
        "functions": list(row.principal.functions),
        "repositories": list(row.principal.repositories),
        "user_roles": None if user is None else {of: role.value for of, role in user.roles.items()},
        "state": "active" if row.lives(now) else "expired",
        "created_at": stamp(row.created_at),
        "created_by": row.created_by or None,
        "expires_at": stamp(row.expires_at),
        "last_used_at": stamp(row.last_used_at),
        "previous_expires_at": stamp(row.old_expires_at) if (row.old_expires_at or 0.0) > now else None,
    }


@access(Permission.SELF)
async def listed(request: web.Request) -> web.Response:
    tokens, principal, now = request.app[GATEWAY].tokens, request[PRINCIPAL], time.time()
    every = await tokens.rows()
    rows = (row for row in every if _mine(principal, row) or _administers(tokens, principal, row))
    return await a_whole_list("tokens", (_shown(tokens, row, now) for row in rows))


@access(Permission.SELF)
async def made(request: web.Request) -> web.Response:
    body = await json_body(request)
    known_keys(body, "name", "role", "namespace", "functions", "repositories", "user", "expires")
    principal, tokens = request[PRINCIPAL], request.app[GATEWAY].tokens
    if principal.grants is None:  # no user's: it has no others to make for itself
        require(principal, Permission.ADMIN)
    user = a_text(body, "user", "") if body.get("user") is not None else ""
    wish = _wish(body, user)
    lifetime = _duration(body, "expires") if body.get("expires") not in (None, "") else None
    about(request, f"tokens/{wish.name}" + (f"@{user}" if user else ""))
    _check_maker(request, wish, user)
    _check_pace(request)
    _check_end(tokens, principal, None if lifetime is None else time.time() + lifetime.total_seconds())
    row, token = await tokens.create(wish, user=user, lifetime=lifetime, by=principal.name)
    return answer(_once(row, token), 201)


def _wish(body: Mapping[str, Any], user: str) -> Principal:
    """What the token may at most. A user's may what its user may, where nothing is said: but what is narrowed to
    functions or repositories administers nothing. Raises InvalidInput."""
    functions, repositories = texts(body, "functions"), texts(body, "repositories")
    role = body.get("role")
    if user and role in (None, ""):
        role = (Role.DEPLOYER if functions or repositories else Role.ADMIN).value
    try:
        return Principal(
            a_text(body, "name"),
            Role(a_text({"role": role} if role is not None else {}, "role")),
            a_text(body, "namespace", ALL_NAMESPACES),
            functions,
            repositories,
        )
    except ValueError:
        raise InvalidInput("the role must be one of " + ", ".join(role.value for role in ROLES)) from None


def _check_maker(request: web.Request, wish: Principal, user: str) -> None:
    """Raises Forbidden, NotFound unless it is the caller's to make."""
    principal, users = request[PRINCIPAL], request.app[GATEWAY].tokens.users
    if not user:
        allow(request, Permission.ADMIN, wish.namespace)  # of one namespace: makes none for others
    elif principal.grants is not None and user == principal.name:
        for namespace in (wish.namespace,) if wish.namespace != ALL_NAMESPACES else (of for of, _ in principal.grants):
            within(request, namespace)
    else:
        found = users.find(user)
        if found is None or not any(principal.may(Permission.ADMIN, of) for of in found.roles or (ALL_NAMESPACES,)):
            require(principal, Permission.ADMIN)  # who administers nothing is told that, and of no user
            raise no_user(user)
        if not manages(principal, found):
            raise Forbidden(f"{user} has roles that are not yours to give", hint="users make their own tokens")
        for namespace in found.roles or (ALL_NAMESPACES,):
            within(request, namespace)
        _check_held(principal, wish.namespace)
    if words := reaches(principal, wish):
        raise Forbidden(words)


def _check_held(principal: Principal, namespace: str) -> None:
    """Who holds another's token has what that user is given later, wherever it opens. Raises Forbidden where that is
    beyond what `principal` administers."""
    if not principal.may(Permission.ADMIN, namespace):
        raise Forbidden(
            "a token of somebody else would open what its user is given elsewhere", hint="narrow it: -n NAMESPACE"
        )


def _check_end(tokens: TokenStore, principal: Principal, wished: float | None) -> None:
    """What a token makes or rotates ends with it (Unix seconds), where that has an end. Raises Forbidden."""
    found = tokens.now(principal.credential)
    ends = found[1] if found else None
    if ends is not None and (wished is None or wished > ends):
        left = max(0, int(ends - time.time()))
        raise Forbidden("your own token ends before that", hint=f"make one that ends, too: --expires {left}s at most")


def texts(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Raises InvalidInput."""
    texts = body.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput(f"{key} must be a list of texts")
    return tuple(texts)


def _check_pace(request: web.Request) -> None:
    """Each change is a record of the audit log, which has a bound: who administers nothing does not fill it. Raises
    Throttled."""
    principal, pace, now = request[PRINCIPAL], request.app[GATEWAY].tokens.pace, time.monotonic()
    if principal.may(Permission.ADMIN):
        return
    if wait := pace.wait(principal.name, now):
        raise Throttled("you change tokens too often", reason="TokenChanges", retry_after=retry_after(wait))
    pace.take(principal.name, now)


def _duration(body: Mapping[str, Any], key: str) -> timedelta:
    """Raises InvalidInput."""
    try:
        return parse_duration(body[key])
    except ValueError as error:
        raise InvalidInput(f"{key} must be {error}") from None


async def _theirs(request: web.Request) -> TokenRow:
    """The token that the path names, where it is the caller's to change. Raises NotFound for every other."""
    tokens, principal = request.app[GATEWAY].tokens, request[PRINCIPAL]
    name = path_text(request, "token")
    row = await tokens.named(name)
    if _administers(tokens, principal, row):
        words = ""
    elif _mine(principal, row):
        words = "" if row.name == principal.credential else reaches(principal, row.principal)
    else:
        raise no_token(name)
    if words:
        raise Forbidden(words)
    within(request, row.principal.namespace)
    return row


@access(Permission.SELF)
async def rotated(request: web.Request) -> web.Response:
    body = await json_body(request)
    known_keys(body, "grace")
    grace = _duration(body, "grace") if "grace" in body else GRACE
    _check_pace(request)
    row, tokens, principal = await _theirs(request), request.app[GATEWAY].tokens, request[PRINCIPAL]
    if row.name != principal.credential:  # the caller holds it from here on, as if it had made it
        _check_end(tokens, principal, row.expires_at)
        if row.user and not _mine(principal, row):
            _check_held(principal, row.principal.namespace)
    return answer(_once(*await tokens.rotate(row.name, grace)))


@access(Permission.SELF)
async def revoked(request: web.Request) -> web.Response:
    _check_pace(request)
    row = await _theirs(request)
    await request.app[GATEWAY].tokens.revoke(row.name)
    return web.Response(status=204)


def _once(row: TokenRow, token: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "user": row.user or None,
        "token": token,
        "expires_at": stamp(row.expires_at),
        "previous_expires_at": stamp(row.old_expires_at),
    }


_ROLE = {"type": "string", "enum": [role.value for role in ROLES]}
_OR_NOTHING = {"type": ["string", "null"]}
_SPAN = {"type": ["string", "number"], "description": 'such as "90d"; a number is seconds'}
_TOKEN = an_object(
    ("name", "user", "role", "namespace", "state"), more=True, name=TEXT, user=_OR_NOTHING, role=TEXT, namespace=TEXT,
    functions=a_list(TEXT), repositories=a_list(TEXT), created_at=TIME, created_by=_OR_NOTHING, expires_at=_OR_NOTHING,
    last_used_at=_OR_NOTHING, state={"type": "string", "enum": ["active", "expired"]},
)  # fmt: skip
_NEW = an_object(
    ("name",), name=TEXT, role=_ROLE, namespace=TEXT, functions=a_list(TEXT), repositories=a_list(TEXT), user=TEXT,
    expires=_SPAN,
)  # fmt: skip
_ONCE = an_object(
    ("name", "user", "token", "expires_at", "previous_expires_at"), name=TEXT, user=_OR_NOTHING, token=TEXT,
    expires_at=_OR_NOTHING, previous_expires_at=_OR_NOTHING,
)  # fmt: skip
OPERATIONS = (
    Operation("GET", "/v1/tokens", listed, "One's own tokens, and those that one manages; without what opens",
              {200: an_object(("tokens",), tokens=a_list(_TOKEN))}),
    Operation("POST", "/v1/tokens", made, "Make a token; it is shown this once", {201: _ONCE}, body=_NEW),
    Operation("POST", "/v1/tokens/{token}/rotate", rotated,
              "A new token in its place, shown this once; the old one lives on a while", {200: _ONCE},
              body=an_object(grace=_SPAN)),
    Operation("DELETE", "/v1/tokens/{token}", revoked, "Revoke a token", {204: None}),
)  # fmt: skip
