"""API keys of this server, in a header field or a query parameter."""

from __future__ import annotations

import time
from urllib.parse import unquote_plus

from aiohttp import web

from faas.auth import Permission
from faas.errors import Forbidden
from faas.rules.auth import AuthRule, KeyRule
from gateway.api_keys import KeyStore
from gateway.edge.auth.method import WrongCredentials
from gateway.edge.caller import Caller
from gateway.edge.entry import Entry

KEY_CHARACTERS = 256


class KeyMethod:
    """Neither the key nor where it stood reaches the function."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def admit(self, request: web.Request, entry: Entry, asked: AuthRule) -> Caller | None:
        rule = asked.key
        if rule is None or (given := shown(request, entry, rule)) is None:
            return None
        key = self._keys.of_secret(given, time.time()) if len(given) <= KEY_CHARACTERS else None
        if key is None:
            raise WrongCredentials
        where = entry.route.revision.key
        if not key.principal.may(Permission.INVOKE, where.namespace, where.function):
            raise Forbidden("this key is for other functions")
        return Caller(key.principal, key=key.id, plan=key.plan)

    def challenge(self, asked: AuthRule, *, wrong: bool) -> str:
        return 'ApiKey realm="faas"' if asked.key else ""


def shown(request: web.Request, entry: Entry, rule: KeyRule) -> str | None:
    """What stands where the key should; None where nothing does. Two of them are wrong: which one would count?"""
    found = list(request.headers.getall(rule.header, ()))
    if rule.query:
        for part in entry.target.query.split("&"):
            name, _, value = part.partition("=")
            if unquote_plus(name) == rule.query:
                found.append(unquote_plus(value))
    if len(found) > 1:
        raise WrongCredentials
    return found[0].strip() if found else None
