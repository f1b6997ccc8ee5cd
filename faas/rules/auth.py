"""`[auth]`: who may call, in front of one function or of one route (`AuthRule`). Several ways in may be named; any one
that admits is enough.

Source of the words: Amazon API Gateway, "Control access with JWT authorizers", "… with Lambda authorizers" (HTTP APIs).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from faas import checks
from faas.checks import Check
from faas.errors import SpecError
from faas.rules.payload import Payload
from faas.spec_table import table

# Signatures with a public key alone: with a secret one (HS…) whoever verifies could sign, and a public key could be
# taken for a secret.
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
TEXTS = 32  # audiences, scopes
TEXT_LENGTH = 1024
IDENTITIES = 10
URL_CHARACTERS = 2048
LONGEST_SECONDS = 10  # of an authorizer: its caller waits, with a connection

_HEADER = re.compile(r"[A-Za-z0-9-]{1,128}")
_QUERY = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.json")
_FUNCTION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?")
IDENTITY = re.compile(
    r"\$request\.header\.(?P<header>[A-Za-z0-9-]{1,128})|\$request\.querystring\.(?P<query>[A-Za-z0-9._~-]{1,128})"
    r"|\$stageVariables\.(?P<variable>\w{1,128})"
    r"|\$context\.(?P<context>routeKey|stage|httpMethod|path|identity\.sourceIp)"
)
# No identity: for us alone, or said by us and not by the client (it would be what he claims).
_NOT_IDENTITIES = frozenset(
    {"x-faas-bypass", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto",
     "x-real-ip", "x-request-id"}
)  # fmt: skip
_NOT_KEYS = frozenset({"authorization", "cookie", "host", "content-length", "content-type", "connection"})


@dataclass(frozen=True, slots=True)
class KeyRule:
    """An API key of this server, in a header field or, where `query` is named, in that parameter."""

    header: str = "X-Api-Key"
    query: str = ""


@dataclass(frozen=True, slots=True)
class JwtRule:
    """A Bearer token that `issuer` signed for one of `audience`, with a key of the set `jwks` by one of `algorithms`.

    `jwks`: a URL, or the name of a file in the server's folder `jwks`, or "": where the issuer's own metadata says
    (OpenID Connect Discovery). `scopes`: one of them is enough; () asks none.
    """

    issuer: str
    audience: tuple[str, ...]
    jwks: str = ""
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthorizerRule:
    """A function of the same namespace (`name`, `name:alias`) says who may come in.

    It gets the request without its body, by `format`; its answer holds for `ttl` for requests with the same values of
    `identity`, and 0 keeps none. One whose identity is not whole is refused without asking. `timeout`: seconds.
    """

    function: str
    format: Payload = Payload.V2
    identity: tuple[str, ...] = ("$request.header.Authorization",)
    ttl: timedelta = timedelta(minutes=5)
    timeout: int = LONGEST_SECONDS


@dataclass(frozen=True, slots=True)
class AuthRule:
    """The ways in. `public`: anybody, and then it is the only one; `token`: a token of this server, Bearer or Basic."""

    public: bool = False
    token: bool = False
    key: KeyRule | None = None
    jwt: JwtRule | None = None
    authorizer: AuthorizerRule | None = None


LOGIN = AuthRule(token=True, key=KeyRule())  # what stands in front of a function that names nothing and is not public


def _texts(at_least: int) -> Check:
    def check(value: Any) -> tuple[str, ...]:
        is_list = isinstance(value, list | tuple) and at_least <= len(value) <= TEXTS
        if not is_list or not all(isinstance(item, str) and 0 < len(item) <= TEXT_LENGTH for item in value):
            raise ValueError(f"a list of {at_least} to {TEXTS} texts")
        return tuple(value)

    return check


def _issuer(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_LENGTH:
        raise ValueError("the issuer, letter by letter as it stands in the tokens' iss")
    return value


def _jwks(value: Any) -> str:
    """Plain http only on this machine, where nobody can change keys on the way."""
    words = "an https URL, or the name of a file (NAME.json) in the server's folder jwks"
    if isinstance(value, str) and _FILE.fullmatch(value):
        return value
    try:
        return key_set_url(value)
    except ValueError:
        raise ValueError(words) from None


def key_set_url(value: Any) -> str:
    """`value`, where it is a URL that keys may come from: https, or this machine's. Raises ValueError."""
    words = "an https URL"
    if not isinstance(value, str) or len(value) > URL_CHARACTERS or not value.isascii() or not value.isprintable():
        raise ValueError(words)
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(words) from None
    plain = parts.scheme == "http" and is_loopback(host)
    if not host or (parts.scheme != "https" and not plain) or parts.username is not None or port == 0:
        raise ValueError(words)
    return value


def is_loopback(host: str) -> bool:
    """Whether a URL's host is this machine's own, as it is written."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _algorithms(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(item in ALGORITHMS for item in value):
        raise ValueError("a list of " + ", ".join(ALGORITHMS))
    return tuple(dict.fromkeys(value))


def _identity(value: Any) -> tuple[str, ...]:
    words = (
        f"a list of at most {IDENTITIES} of $request.header.NAME, $request.querystring.NAME, $stageVariables.NAME, "
        "$context.routeKey, $context.stage, $context.httpMethod, $context.path and $context.identity.sourceIp"
    )
    if not isinstance(value, list | tuple) or len(value) > IDENTITIES:
        raise ValueError(words)
    found = [IDENTITY.fullmatch(item) if isinstance(item, str) else None for item in value]
    if not all(found):
        raise ValueError(words)
    for one in found:
        if one is not None and (one["header"] or "").lower() in _NOT_IDENTITIES:
            raise ValueError(f"{words}; {one['header']} is ours to say ($context.identity.sourceIp is the address)")
    return tuple(value)


def _key_header(value: Any) -> str:
    if not isinstance(value, str) or not _HEADER.fullmatch(value) or value.lower() in _NOT_KEYS:
        raise ValueError("a header field's name of its own, such as X-Api-Key")
    return value


_KEY: Mapping[str, Check] = {
    "header": _key_header,
    "query": checks.matching(_QUERY, "a query parameter's name: letters, digits, . _ ~ -"),
}
_JWT: Mapping[str, Check] = {
    "issuer": _issuer,
    "audience": _texts(1),
    "jwks": _jwks,
    "algorithms": _algorithms,
    "scopes": _texts(0),
}
_AUTHORIZER: Mapping[str, Check] = {
    "function": checks.matching(_FUNCTION, "a function of the same namespace: name, or name:alias"),
    "format": checks.choice(Payload),
    "identity": _identity,
    "ttl": checks.duration(timedelta(0), timedelta(hours=1)),
    "timeout": checks.integer(1, LONGEST_SECONDS),
}


def _key(where: str, value: Any) -> KeyRule | None:
    if isinstance(value, bool):
        return KeyRule() if value else None
    return KeyRule(**table(where, value, _KEY, optional=("query",)))


def _jwt(where: str, value: Any) -> JwtRule:
    rule = JwtRule(**_whole(where, table(where, value, _JWT, optional=("jwks",)), ("issuer", "audience")))
    if not rule.jwks and not _is_discoverable(rule.issuer):
        raise SpecError(
            f"{where} needs jwks: the keys of an issuer that is no https URL cannot be found by its name",
            key=f"{where}.jwks",
            hint="an https URL, or NAME.json in the server's folder jwks",
        )
    return rule


def _is_discoverable(issuer: str) -> bool:
    """Whether it is as OpenID Connect Discovery has issuers: a URL without query and fragment."""
    try:
        return not re.search(r"[?#]", key_set_url(issuer))
    except ValueError:
        return False


def _authorizer(where: str, value: Any) -> AuthorizerRule:
    rule = AuthorizerRule(**_whole(where, table(where, value, _AUTHORIZER), ("function",)))
    if rule.ttl and not rule.identity:
        raise SpecError(
            f"{where}.ttl needs an identity: what would an answer be kept for?", key=f"{where}.ttl", hint='ttl = "0s"'
        )
    return rule


def _check_apart(where: str, rule: AuthRule) -> None:
    """Raises SpecError where an authorizer would be asked by what keys of the server come in."""
    if rule.key is None or rule.authorizer is None:
        return
    ours = {f"$request.header.{rule.key.header}".lower()}
    if rule.key.query:
        ours.add(f"$request.querystring.{rule.key.query}".lower())
    for source in rule.authorizer.identity:
        if source.lower() in ours:
            key = f"{where}.authorizer.identity"
            raise SpecError(
                f"{key}: {source} is where keys of this server come in, which no function is shown", key=key,
                hint="give the key or the identity another name",
            )  # fmt: skip


def _whole(where: str, values: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    for key in required:
        if key not in values:
            raise SpecError(f"{where} needs {key}", key=where)
    return values


_METHODS: Mapping[str, Callable[[str, Any], Any]] = {"key": _key, "jwt": _jwt, "authorizer": _authorizer}


def read(where: str, value: Any) -> AuthRule:
    """The rule in the table at `where`. Raises SpecError."""
    flags: Mapping[str, Check] = {"public": checks.boolean, "token": checks.boolean}
    found = table(where, value, flags, tuple(_METHODS))
    for name, method in _METHODS.items():
        if value.get(name) is not None:
            found[name] = method(f"{where}.{name}", value[name])
    rule = AuthRule(**found)
    _check_apart(where, rule)
    named = [name for name in ("token", *_METHODS) if getattr(rule, name)]
    if not named and not rule.public:
        raise SpecError(
            f"{where} names no way in", key=where, hint="one of public, token, key, jwt, authorizer; or leave it out"
        )
    if named and rule.public:
        raise SpecError(
            f"{where}.public excludes {named[0]}: anybody may call, or those who show something",
            key=f"{where}.public",
            hint="drop one of the two",
        )
    return rule
