"""`Doorman`: who may call, at the entry that a request came in by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from faas.attempts import Attempts
from faas.auth import ANONYMOUS, Authenticator, Permission, Principal
from faas.web import LOGIN_HINT, PRINCIPAL, credentials, require
from gateway.edge.entry import Entry

NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `context` is what their credentials say of them: `requestContext.authorizer` of an event."""

    principal: Principal = ANONYMOUS
    context: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    @property
    def is_stranger(self) -> bool:
        """Nothing of theirs was checked: what they sent as credentials is the function's."""
        return self.principal is ANONYMOUS


STRANGER = Caller()


@dataclass(frozen=True, slots=True)
class Doorman:
    """`everybody_logs_in`: the API listener, where `public` opens nothing."""

    authenticator: Authenticator
    everybody_logs_in: bool = False
    attempts: Attempts = field(default_factory=Attempts)

    async def admit(self, request: web.Request, entry: Entry) -> Caller:
        """The caller; a STRANGER where anybody may call. Raises Unauthenticated, Forbidden, Throttled."""
        if entry.public and not self.everybody_logs_in:
            return STRANGER
        principal = request.get(PRINCIPAL)  # set by the API listener's middleware
        if principal is None:
            principal = await self._log_in(request)
        key = entry.route.revision.key
        require(principal, Permission.INVOKE, key.namespace, key.function)
        return Caller(principal)

    async def _log_in(self, request: web.Request) -> Principal:
        given = credentials(request)
        if given is None:
            return ANONYMOUS
        return await self.attempts.admit(self.authenticator, *given, request.remote, hint=LOGIN_HINT)
