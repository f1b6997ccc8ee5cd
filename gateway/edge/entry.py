"""`Entry`: where a request came in, and what is asked of it there: by a function's own path, by its host, or a route.

Everything after it (who may call, limits, the function, the answer) reads the entry and not the path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from aiohttp import hdrs, web

from faas.errors import NotFound
from faas.rules.rules import Rules
from gateway.router import Route

PREFIX = "/function/"
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


def of_function(route: Route, target: Target) -> Entry:
    """The entry of a function's own path."""
    spec = route.revision.spec
    return Entry(route, target, spec.rules, spec.public)


def target_of(request: web.Request, prefix: str = PREFIX) -> Target:
    """The target of `{prefix}{name}[/{path}][?query]`, not decoded but for the name. Raises NotFound."""
    raw, _, query = request.raw_path.partition("?")
    if not raw.startswith(prefix):
        raise NotFound("there is no such function")
    name, slash, path = raw[len(prefix) :].partition("/")
    return Target(unquote(name) if "%" in name else name, slash + path or "/", query)


def by_host(request: web.Request, domain: str) -> Target | None:
    """The target of a request to `{name}.{domain}`: the whole path is the function's."""
    host = request.headers.get(hdrs.HOST, "").rpartition(":")[0] or request.headers.get(hdrs.HOST, "")
    name, dot, rest = host.lower().partition("." + domain.lower())
    if not domain or not dot or rest:
        return None
    path, _, query = request.raw_path.partition("?")
    return Target(name, path, query)
