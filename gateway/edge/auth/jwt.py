"""JSON Web Tokens (RFC 7519) as Bearer tokens, with the checks of RFC 8725.

The rule alone says which algorithms count and where keys come from: a token's `jku`, `x5u`, `jwk` and `x5c` are not
looked at, its `kid` is compared with the ids of the set and with nothing else, what it declares critical is refused.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from aiohttp import web

from faas.auth import Principal, Role
from faas.errors import Forbidden
from faas.rules.auth import AuthRule, JwtRule
from gateway.edge.auth.jwks import DISCOVERED, KEY_ID_CHARACTERS, KeySets
from gateway.edge.auth.method import BEARER, INVALID, Stale, WrongCredentials, bearer
from gateway.edge.caller import Caller
from gateway.edge.entry import Entry

LEEWAY_SECONDS = 60  # clocks differ
KEPT, KEPT_CHARACTERS = 4096, 4_194_304  # checked tokens, and all of them together; the oldest is forgotten first
NAME_CHARACTERS = 128

_SIGNED_BUT = (
    jwt.ExpiredSignatureError,
    jwt.ImmatureSignatureError,
    jwt.InvalidIssuedAtError,
    jwt.InvalidIssuerError,
    jwt.MissingRequiredClaimError,
)

_Which = tuple[str, JwtRule, bytes]  # the namespace, the rule, the token's digest


@dataclass(frozen=True, slots=True)
class Checked:
    """A token that was right: the key that said so, and until when (Unix seconds) it is."""

    algorithm: str
    key_id: str | None
    key: jwt.PyJWK
    claims: dict[str, Any]
    until: float
    size: int  # characters


class JwtMethod:
    """A token that has been checked is not checked again by the same key: that costs fifty times as much as the rest.
    `clock` gives Unix seconds."""

    def __init__(self, sets: KeySets, *, clock: Callable[[], float] = time.time) -> None:
        self._sets = sets
        self._clock = clock
        self._checked: OrderedDict[_Which, Checked] = OrderedDict()
        self._held = 0  # characters of the tokens that are kept

    async def admit(self, request: web.Request, entry: Entry, asked: AuthRule) -> Caller | None:
        """Raises Unavailable where the issuer's keys cannot be read."""
        rule = asked.jwt
        if rule is None or not (token := bearer(request)):
            return None
        where = entry.route.revision.key
        claims = await self._claims(token, rule, where.namespace)
        granted = scopes_of(claims)
        if rule.scopes and not granted & set(rule.scopes):
            raise Forbidden("this token's scopes do not allow this")
        name = claims.get("sub")
        name = name[:NAME_CHARACTERS] if isinstance(name, str) and name.isprintable() and name else "jwt"
        principal = Principal(name, Role.CALLER, where.namespace, (where.function,))
        return Caller(principal, {"jwt": {"claims": as_texts(claims), "scopes": sorted(granted) or None}})

    def challenge(self, asked: AuthRule, *, wrong: bool) -> str:
        if asked.jwt is None:
            return ""
        return INVALID if wrong else BEARER

    async def _claims(self, token: str, rule: JwtRule, namespace: str) -> dict[str, Any]:
        """Raises WrongCredentials, Stale, Unavailable."""
        which = (namespace, rule, hashlib.sha256(token.encode()).digest())
        known = self._checked.get(which)
        if known is not None:
            # The set is asked each time: a key that its issuer has withdrawn is not there any more.
            if (
                self._clock() < known.until
                and await self._key(namespace, rule, known.key_id, known.algorithm) is known.key
            ):
                return known.claims
            self._forget(which)
        found = await self._check(token, rule, namespace)
        self._forget(which)  # another request may have kept it meanwhile
        self._checked[which] = found
        self._held += found.size
        while len(self._checked) > KEPT or self._held > KEPT_CHARACTERS:
            self._forget(next(iter(self._checked)))
        return found.claims

    async def _key(self, namespace: str, rule: JwtRule, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        where = rule.jwks or DISCOVERED + rule.issuer
        return await self._sets.key(where, key_id, algorithm, namespace=namespace)

    def _forget(self, which: _Which) -> None:
        if (found := self._checked.pop(which, None)) is not None:
            self._held -= found.size

    async def _check(self, token: str, rule: JwtRule, namespace: str) -> Checked:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise WrongCredentials from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in rule.algorithms or "crit" in header or len(key_id or "") > KEY_ID_CHARACTERS:
            raise WrongCredentials
        key = await self._key(namespace, rule, key_id, algorithm)
        if key is None:
            raise WrongCredentials
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=rule.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss"], "verify_aud": False, "verify_sub": False, "verify_jti": False},
            )
        except _SIGNED_BUT:
            raise Stale from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise WrongCredentials from None
        if not is_for(claims, rule.audience):
            raise Stale
        return Checked(algorithm, key_id, key, claims, float(claims["exp"]) + LEEWAY_SECONDS, len(token))


def is_for(claims: Mapping[str, Any], audience: tuple[str, ...]) -> bool:
    """Whether one of `audience` stands in `aud`; in `client_id` where there is no `aud`, as API Gateway has it."""
    found = claims.get("aud", claims.get("client_id"))
    named = found if isinstance(found, list) else [found]
    return any(isinstance(one, str) and one in audience for one in named)


def scopes_of(claims: Mapping[str, Any]) -> set[str]:
    """What `scope` (RFC 8693, 4.2: words in one text) and `scp` (a text or a list) grant."""
    granted: set[str] = set()
    for name in ("scope", "scp"):
        found = claims.get(name)
        if isinstance(found, str):
            granted |= set(found.split())
        elif isinstance(found, list):
            granted |= {one for one in found if isinstance(one, str)}
    return granted


def as_texts(claims: Mapping[str, Any]) -> dict[str, str]:
    """Claims as HTTP APIs hand them over: every value a text, lists as `[a b]`."""
    return {name: _as_text(value) for name, value in claims.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "[" + " ".join(_as_text(one) for one in value) + "]"
    return json.dumps(value, separators=(",", ":"))
