"""The token endpoint of Docker's flow: GET with Basic (docker, skopeo), or POST of a form (containerd).

There are no refresh tokens: who wants one (`offline_token`, `access_type`) is answered without, and keeps the password.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from urllib.parse import parse_qs

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.errors import Unauthenticated
from faas.remote import client_address
from faas.web import read_body
from registry.access import ACTIONS, SCOPES, TOKEN_LENGTH, TOKEN_SECONDS, Caller, parse_scope
from registry.extension import bad
from registry.requests import shown_by
from registry.service import Registry

PATH = "/token"
SERVICE = "faas"
FORM_BYTES = 16_384


def challenge(request: web.Request, registry: Registry, scope: str = "", error: str = "") -> str:
    """The `WWW-Authenticate` header: how to log in, and for what."""
    if not registry.access.wants_tokens:
        return 'Basic realm="faas"'
    words = f'Bearer realm="{_origin(request)}{PATH}",service="{SERVICE}"'
    words += f',scope="{scope}"' if scope else ""
    return words + (f',error="{error}"' if error else "")


def _origin(request: web.Request) -> str:
    """Where the client has reached us: as it says itself, who alone will read it. A proxy that ends TLS says that it
    does: clients would show it their passwords in the clear otherwise."""
    is_secure = request.secure or request.headers.get(hdrs.X_FORWARDED_PROTO, "").strip().lower() == "https"
    return f"{'https' if is_secure else 'http'}://{request.host}"


def scope_of(repository: str, permission: Permission) -> str:
    """What a client must ask a token for: who pushes pulls as well."""
    actions = [action for action, needed in ACTIONS.items() if needed is permission]
    return f"repository:{repository}:" + ",".join(dict.fromkeys(["pull", *actions]))


async def issue(request: web.Request, registry: Registry) -> web.StreamResponse:
    """A token for what of the wanted scopes the caller may. Raises Unauthenticated on wrong credentials, Throttled."""
    if request.method == "POST":
        fields = await _form(request)
        if fields.get("grant_type") != ["password"]:
            return _unsupported_grant()
        caller, scopes = await _owner(fields, request, registry), fields.get("scope", [])
    else:
        caller, scopes = await shown_by(request, registry), request.query.getall("scope", [])
    if caller.scopes is not None:
        raise Unauthenticated("a token is not exchanged for another one; show the credentials themselves")
    written = [word for scope in scopes for word in scope.split()]
    if len(written) > SCOPES:
        raise bad(f"at most {SCOPES} scopes at once")
    now = time.time()
    token = registry.access.signer.issue(caller, registry.access.granted(caller, wanted(caller, written)), now)
    if len(token) > TOKEN_LENGTH:
        raise bad("the token would be too long for a header; ask for fewer scopes at once")
    return web.json_response(
        {
            "token": token,
            "access_token": token,
            "expires_in": TOKEN_SECONDS,
            "issued_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        },
        headers={hdrs.CACHE_CONTROL: "no-store"},
    )


def wanted(caller: Caller, scopes: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The (repository, action) pairs to grant where the caller may.

    Somebody with credentials who asks to pull is offered every action there: some clients ask once, before their first
    request, and go on to push with that token. It is theirs to use; a stranger gets what was asked for.
    """
    for text in scopes:
        pairs = parse_scope(text)
        yield from pairs
        if not caller.is_anonymous:
            yield from ((name, action) for name, asked in pairs if asked == "pull" for action in ACTIONS)


async def _form(request: web.Request) -> dict[str, list[str]]:
    body = await read_body(request, FORM_BYTES)
    return parse_qs(body.decode("utf-8", "replace"))


async def _owner(fields: dict[str, list[str]], request: web.Request, registry: Registry) -> Caller:
    """OAuth 2.0's password grant (RFC 6749 §4.3), as containerd sends it."""
    user, password = (fields.get(key, [""])[0] for key in ("username", "password"))
    if not user or not password:
        raise Unauthenticated("username and password are needed")
    return await registry.access.caller(password, user, client_address(request))


def _unsupported_grant() -> web.Response:
    """RFC 6749 §5.2, and the registry's own form beside it."""
    words = "the only grant_type is password; there are no refresh tokens"
    error = {"error": "unsupported_grant_type", "error_description": words}
    return web.json_response({**error, **bad(words).body()}, status=400)
