"""`Entry`: where a request came in, and what is asked of it there: by a function's own path, by its host, or a route.

Everything after it (who may call, limits, the function, the answer) reads the entry and not the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import hdrs, web

from faas.auth import Permission
from faas.errors import NotFound
from faas.header_changes import NO_CHANGES, HeaderChanges
from faas.rules.rules import Rules
from faas.web import PRINCIPAL, require
from gateway.router import Route, parse_name

PREFIX = "/function/"
REST = "{path:(?s:.*)}"  # what follows in a path that aiohttp routes: an encoded end of a line is in it, too
DEFAULT = "$default"  # the route and the stage of what came by a function's own path, as on Lambda
NO_TEXTS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: the function's name as written (`hello.team:v7`), and what the function sees."""

    name: str
    path: str  # raw, with its first slash
    query: str  # raw

    @property
    def written(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


@dataclass(frozen=True, slots=True)
class Entry:
    """`api`: the API's name, "" for a function's own path; `pattern`: the route as it was written (`GET /users/{id}`).

    `public`: whether anybody may call where the rules name no other way.
    """

    route: Route
    target: Target
    rules: Rules
    public: bool
    api: str = ""
    pattern: str = DEFAULT
    stage: str = DEFAULT
    parameters: Mapping[str, str] = field(default_factory=lambda: NO_TEXTS)  # of the pattern: decoded
    variables: Mapping[str, str] = field(default_factory=lambda: NO_TEXTS)  # of the stage
    stage_at: int = -1  # which segment of the target's path names the stage, from 0; -1: none does
    payload: str = "2.0"  # the event's format: as `Rules.payload` of the function or the route
    timeout: float | None = None  # seconds; None: the function's alone
    body_limit: int = 0  # bytes; 0: none but the contract's
    request_headers: HeaderChanges = NO_CHANGES
    response_headers: HeaderChanges = NO_CHANGES


ENTRY = web.RequestKey("entry", Entry)
API: web.RequestKey[str] = web.RequestKey("api", str)  # in which a request came, also where it has no such route


def of_function(route: Route, target: Target) -> Entry:
    """The entry of a function's own path."""
    spec = route.revision.spec
    return Entry(route, target, spec.rules, spec.public, payload=spec.rules.payload)


def target_of(request: web.Request, prefix: str = PREFIX) -> Target:
    """The target of `{prefix}{name}[/{path}][?query]`, not decoded but for the name. Raises NotFound; and Forbidden for
    who is known (on the API listener) and may invoke nothing in that namespace: what is there is not for them to hear.
    """
    raw, _, query = request.raw_path.partition("?")
    if not raw.startswith(prefix):
        raise NotFound("there is no such function")
    name, slash, path = raw[len(prefix) :].partition("/")
    name = unquote(name) if "%" in name else name
    if (principal := request.get(PRINCIPAL)) is not None:
        namespace = parse_name(name)[0]
        if not principal.may_in(Permission.INVOKE, namespace):
            require(principal, Permission.INVOKE, namespace)
    return Target(name, slash + path or "/", query)


def by_host(request: web.Request, domain: str) -> Target | None:
    """The target of a request to `{name}.{domain}`: the whole path is the function's."""
    return host_target(request.headers.get(hdrs.HOST, ""), request.raw_path, domain)


def host_target(host: str, raw: str, domain: str) -> Target | None:
    """The same of a Host field's value and a request's target."""
    host = host.rpartition(":")[0] or host
    name, dot, rest = host.lower().partition("." + domain.lower())
    if not domain or not dot or rest:
        return None
    path, _, query = raw.partition("?")
    return Target(name, path, query)
