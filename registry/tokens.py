"""The token endpoint of Docker's flow: GET with Basic (docker, skopeo), or POST of a form (containerd)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.errors import Unauthenticated
from faas.web import credentials, read_body
from registry.access import ACTIONS, SCOPES, STRANGER, TOKEN_SECONDS, Caller, parse_scope
from registry.errors import RegistryError
from registry.service import Registry

PATH = "/token"
SERVICE = "faas"
FORM_BYTES = 16_384


def challenge(request: web.Request, registry: Registry, scope: str = "", error: str = "") -> str:
    """The `WWW-Authenticate` header: how to log in, and for what."""
    if not registry.token_flow:
        return 'Basic realm="faas"'
    words = f'Bearer realm="{request.scheme}://{request.host}{PATH}",service="{SERVICE}"'
    words += f',scope="{scope}"' if scope else ""
    return words + (f',error="{error}"' if error else "")


def scope_of(repository: str, permission: Permission) -> str:
    """What a client must ask a token for: who pushes pulls as well."""
    actions = [action for action, needed in ACTIONS.items() if needed is permission]
    return f"repository:{repository}:" + ",".join(dict.fromkeys(["pull", *actions]))


async def issue(request: web.Request, registry: Registry) -> web.StreamResponse:
    """A token for what of the wanted scopes the caller may. Raises Unauthenticated on wrong credentials."""
    caller, written = await (_from_form if request.method == "POST" else _from_query)(request, registry)
    if len(written) > SCOPES:
        raise RegistryError("UNSUPPORTED", f"at most {SCOPES} scopes at once", status=400)
    granted = caller.granted(pair for text in written for pair in parse_scope(text))
    now = time.time()
    token = registry.signer.issue(caller, granted, now)
    return web.json_response(
        {
            "token": token,
            "access_token": token,
            "expires_in": TOKEN_SECONDS,
            "issued_at": datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        },
        headers={hdrs.CACHE_CONTROL: "no-store"},
    )


async def _from_query(request: web.Request, registry: Registry) -> tuple[Caller, Sequence[str]]:
    given = credentials(request)
    caller = STRANGER if given is None else await registry.caller(*given)
    return caller, [word for scope in request.query.getall("scope", []) for word in scope.split()]


async def _from_form(request: web.Request, registry: Registry) -> tuple[Caller, Sequence[str]]:
    """OAuth 2.0's password grant (RFC 6749 §4.3), as containerd sends it."""
    body = await read_body(request, FORM_BYTES)
    fields = dict(parse_qsl(body.decode("utf-8", "replace")))
    if fields.get("grant_type") != "password":
        raise Unauthenticated("only the grant type password is known")
    return await registry.caller(fields.get("password", ""), fields.get("username")), fields.get("scope", "").split()
