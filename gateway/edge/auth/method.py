"""`Method`: one way to show who asks. Later ways are one more file."""

from __future__ import annotations

from typing import Protocol

from aiohttp import hdrs, web

from faas.errors import Unauthenticated
from faas.rules.auth import AuthRule
from gateway.edge.caller import Caller
from gateway.edge.entry import Entry

BEARER = 'Bearer realm="faas"'
INVALID = 'Bearer realm="faas", error="invalid_token"'
TOKEN_CHARACTERS = 8192


class WrongCredentials(Unauthenticated):
    """These credentials open nothing."""

    # Whether they are unknown, expired, revoked or another place's: one message. They count as a guess.


class Stale(Unauthenticated):
    """These credentials open nothing."""

    # Said of what its issuer did sign (expired, for another audience): the same answer, but it was no guess.


class Method(Protocol):
    """Shared by all requests. Which rule it reads is its own affair."""

    async def admit(self, request: web.Request, entry: Entry, asked: AuthRule) -> Caller | None:
        """The caller; None where `asked` does not name this way, or the request shows nothing of its kind.

        Raises WrongCredentials, Stale, Forbidden; Throttled, Unavailable, FaasError where nobody can tell.
        """
        ...

    def challenge(self, asked: AuthRule, *, wrong: bool) -> str:
        """What WWW-Authenticate says of it, `wrong`: after credentials of its kind; "" where `asked` names it not."""
        ...


def bearer(request: web.Request) -> str:
    """The token of `Authorization: Bearer …`; "" where there is none. One that is too long is wrong."""
    scheme, _, value = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer":
        return ""
    value = value.strip()
    if len(value) > TOKEN_CHARACTERS or not value.isascii():
        raise WrongCredentials
    return value
