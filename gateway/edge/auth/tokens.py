"""Tokens of this server, as Bearer or as the password of Basic; and passwords, where the authenticator knows any."""

from __future__ import annotations

from aiohttp import web

from faas.attempts import Attempts
from faas.auth import Authenticator, Permission
from faas.remote import client_address
from faas.rules.auth import AuthRule
from faas.web import LOGIN_HINT, PRINCIPAL, credentials, require
from gateway.edge.auth.method import BEARER
from gateway.edge.caller import Caller
from gateway.edge.entry import Entry


class TokenMethod:
    """What it admits must hold the right to invoke, on the function itself."""

    def __init__(self, authenticator: Authenticator, attempts: Attempts) -> None:
        self._authenticator = authenticator
        self._attempts = attempts

    async def admit(self, request: web.Request, entry: Entry, asked: AuthRule) -> Caller | None:
        if not asked.token or (given := credentials(request)) is None:
            return None
        token, user = given
        if (asked.jwt or asked.authorizer) and not self._authenticator.takes_password(user):
            principal = await self._authenticator.authenticate(token, user)  # what is none of ours may be theirs
            if principal is None:
                return None
        else:
            principal = await self._attempts.admit(
                self._authenticator, token, user, client_address(request), hint=LOGIN_HINT
            )
        request[PRINCIPAL] = principal  # what is opened ends with its right (`faas.logins`)
        key = entry.route.revision.key
        require(principal, Permission.INVOKE, key.namespace, key.function)
        return Caller(principal)

    def challenge(self, asked: AuthRule, *, wrong: bool) -> str:
        return BEARER if asked.token else ""
