"""Reading requests: who asks, digests, page sizes."""

from __future__ import annotations

import re
from typing import NoReturn
from urllib.parse import quote, urlencode

from aiohttp import hdrs, web

from faas.auth import ROOT, Permission
from faas.oci.digest import Digest
from faas.remote import client_address
from faas.web import credentials
from registry.access import STRANGER, Caller
from registry.errors import RegistryError
from registry.service import Registry

PAGE = 1000  # most names in one answer, whatever the client asks for (distribution CVE-2023-2253)
CALLER = web.RequestKey("caller", Caller)
ROUTE = web.RequestKey("route", str)  # as metrics call it
SCOPE = web.RequestKey("scope", str)  # what a token must say for this request
LACKING = web.RequestKey("lacking", str)  # why the one that came does not do
_NUMBER = re.compile(r"[0-9]{1,19}")


async def caller_of(request: web.Request, registry: Registry) -> Caller:
    """Who asks. Raises Unauthenticated, Throttled."""
    caller = Caller(ROOT) if registry.access.accounts is None else await shown_by(request, registry)
    request[CALLER] = caller
    return caller


async def shown_by(request: web.Request, registry: Registry) -> Caller:
    """Who the request's credentials belong to. Empty ones are a stranger's: so some clients send what they have not
    been given. Raises Unauthenticated, Throttled."""
    given = credentials(request)
    if given in (None, ("", "")):
        return STRANGER
    return await registry.access.caller(*given, client_address(request))


async def administrator(request: web.Request, registry: Registry, namespace: str | None) -> Caller:
    """Who asks, where they administer `namespace` (None: any). Raises what says that they do not."""
    caller = await caller_of(request, registry)
    if caller.scopes is not None or not caller.principal.may(Permission.ADMIN, namespace):
        refuse(request, caller, "this is for an administrator")
    return caller


def refuse(request: web.Request, caller: Caller, words: str) -> NoReturn:
    """A stranger is asked to log in, a token that does not say enough to be made anew; everybody else hears why not."""
    if caller.is_anonymous and caller.scopes is None:
        raise RegistryError("UNAUTHORIZED")
    if caller.scopes is not None:
        request[LACKING] = "insufficient_scope"
        raise RegistryError("UNAUTHORIZED", words)
    raise RegistryError("DENIED", words)


def only(request: web.Request, *methods: str) -> None:
    """Raises a 405 for any other method."""
    if request.method not in methods:
        raise RegistryError("UNSUPPORTED", headers={hdrs.ALLOW: ", ".join(methods)})


def digest_of(text: str) -> Digest:
    """Raises DIGEST_INVALID."""
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise RegistryError("DIGEST_INVALID", str(error)) from None


def page(request: web.Request) -> tuple[int, str]:
    """(n, last) of a list; n is bounded. Raises a 400 for an n that is no number."""
    written = request.query.get("n")
    if written is None:
        return PAGE, request.query.get("last", "")
    if not _NUMBER.fullmatch(written):
        raise RegistryError("UNSUPPORTED", f"n must be a whole number, not {written[:40]!r}", status=400)
    return min(int(written), PAGE), request.query.get("last", "")


def next_link(path: str, count: int, last: str, **more: str) -> dict[str, str]:
    """The `Link` header to the next page (RFC 5988), which asks for `more` as this one did; relative, so that proxies
    need not rewrite it."""
    return {"Link": f'<{quote(path)}?{urlencode({"n": count, "last": last, **more})}>; rel="next"'}
