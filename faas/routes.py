"""`RouteSpec`: method and path that lead to a function (`[[route]]`), and what happens on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from faas import checks, header_changes, hosts, path_pattern
from faas.checks import Check
from faas.errors import SpecError
from faas.header_changes import NO_CHANGES, HeaderChanges
from faas.path_pattern import DEFAULT, PathPattern
from faas.plain import plain, shallow, written
from faas.rules import rules
from faas.rules.auth import LOGIN, AuthRule
from faas.rules.rules import NO_RULES, Rules
from faas.spec_table import table

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ANY = "ANY"
RESERVED = ("function", "async-function", "ws")  # first segments of the listener's own paths
SHORTEST, LONGEST = timedelta(milliseconds=50), timedelta(minutes=15)
BODY_MOST = 1_073_741_824
MOST_OF_A_FUNCTION = 100

Key = tuple[str, str, tuple[object, ...]]  # host, method, the pattern's shape


@dataclass(frozen=True)
class RouteSpec:
    """`methods`: () for any. `host`: "" for the listener's own. `rewrite`: "" leaves the path as it came.

    `timeout`: until the answer is there; None: the function's. `body_limit`: bytes of a request; 0: none of its own.
    `public`: whether anybody may call; None: as the function says. `said`: the rules that are written here; each other
    one is the stage's, else the function's.
    """

    path: str
    methods: tuple[str, ...] = ()
    host: str = ""
    rewrite: str = ""
    request_headers: HeaderChanges = NO_CHANGES
    response_headers: HeaderChanges = NO_CHANGES
    timeout: timedelta | None = None
    body_limit: int = 0
    public: bool | None = None
    rules: Rules = NO_RULES
    said: tuple[str, ...] = ()

    @cached_property
    def pattern(self) -> PathPattern:
        return path_pattern.parse(self.path)

    @property
    def verbs(self) -> tuple[str, ...]:
        """Its methods, or ANY."""
        return self.methods or (ANY,)

    @property
    def text(self) -> str:
        """`GET,POST /users/{id}`."""
        shown = self.path if self.path == DEFAULT else f"{','.join(self.verbs)} {self.path}"
        return f"{shown} at {self.host}" if self.host else shown

    def key(self, method: str) -> str:
        """How a route is called in events: `GET /users/{id}`, `$default`."""
        return self.path if self.path == DEFAULT else f"{method} {self.path}"

    @property
    def keys(self) -> tuple[Key, ...]:
        """What no other route may have."""
        return tuple((self.host, verb, self.pattern.shape) for verb in self.verbs)

    def to_dict(self) -> dict[str, Any]:
        """`[[route]]`'s keys, as far as they are not at their defaults; `read` takes them back."""
        values = {key: value for key, value in written(self).items() if key not in ("rules", "said")}
        return {**values, **plain(said(self.rules, self.said))}

    def layered(self, *below: Mapping[str, Any]) -> Rules:
        """What is asked here: each rule as it is written here, else as the first of `below` (key → rule) has it.
        `public` is an answer to who may call: `false` is not opened by what is below."""
        found: dict[str, Any] = {}
        for layer in reversed(below):
            found |= layer
        found |= said(self.rules, self.said)
        if self.public:
            found["auth"] = AuthRule(public=True)
        elif self.public is False and (below_says := found.get("auth")) is not None and below_says.public:
            found["auth"] = LOGIN
        return Rules(**found)


def said(held: Rules, keys: Collection[str]) -> dict[str, Any]:
    """The rules that were written, by key."""
    return {key: getattr(held, key) for key in keys}


def unusual(held: Rules) -> dict[str, Any]:
    """The rules that ask anything, by key."""
    return {key: value for key, value in shallow(held).items() if value != getattr(NO_RULES, key)}


def _path(value: Any) -> str:
    path_pattern.parse(checks.text(value))
    return str(value)


def _methods(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    wrong = ValueError(f"a list of {', '.join(METHODS)}, or ANY")
    if not isinstance(given, list | tuple) or not given or not all(isinstance(one, str) for one in given):
        raise wrong
    upper = {one.upper() for one in given}
    if upper == {ANY}:
        return ()
    if not upper <= set(METHODS):
        raise wrong
    return tuple(method for method in METHODS if method in upper)


_CHECKS: Mapping[str, Check] = {
    "path": _path,
    "methods": _methods,
    "host": hosts.host,
    "rewrite": checks.path,
    "timeout": checks.duration(SHORTEST, LONGEST),
    "body_limit": checks.integer(0, BODY_MOST),
    "public": checks.boolean,
}
_OPTIONAL = {"host", "rewrite"}
_HEADERS = ("request_headers", "response_headers")


def read(where: str, value: Any, also: Mapping[str, Check] | None = None) -> tuple[RouteSpec, dict[str, Any]]:
    """The route in the table at `where`, and the values of the keys in `also`. Raises SpecError."""
    extra = also or {}
    values = table(where, value, {**_CHECKS, **extra}, (*_HEADERS, *rules.KEYS), optional=_OPTIONAL)
    if "path" not in values:
        raise SpecError(f"{where} needs path", key=where)
    others = {key: values.pop(key) for key in extra if key in values}
    for key in _HEADERS:
        if key in value:
            values[key] = header_changes.read(f"{where}.{key}", value[key])
    route = RouteSpec(**values, rules=rules.parse(where, value), said=written_rules(value))
    _check_together(where, route)
    return route, others


def written_rules(value: Mapping[str, Any]) -> tuple[str, ...]:
    """Which rules a table names."""
    return tuple(key for key in rules.KEYS if value.get(key) is not None)


def _check_together(where: str, route: RouteSpec) -> None:
    if route.public is not None and route.rules.auth is not None:
        raise SpecError(f"{where}.public and {where}.auth exclude each other", key=f"{where}.public", hint="drop one")
    if route.pattern.is_default and route.methods:
        raise SpecError(f"{where}: $default takes every method", key=f"{where}.methods", hint="drop methods")
    if route.rewrite:
        try:
            path_pattern.check_rewrite(route.rewrite, route.pattern)
        except ValueError as error:
            raise SpecError(f"{where}.rewrite must be {error}", key=f"{where}.rewrite") from None


def of_function(value: Any, timeout_seconds: float) -> tuple[RouteSpec, ...]:
    """`[[route]]` of a function whose time limit is that. Raises SpecError."""
    if not isinstance(value, list | tuple) or len(value) > MOST_OF_A_FUNCTION:
        raise SpecError(f"route must be an array of at most {MOST_OF_A_FUNCTION} tables: [[route]]", key="route")
    found = tuple(read(f"route[{place}]", row)[0] for place, row in enumerate(value))
    for place, route in enumerate(found):
        where = f"route[{place}]"
        if not route.host and route.pattern.literals[:1] in {(word,) for word in RESERVED}:
            raise SpecError(
                f"{where}.path: /{route.pattern.literals[0]} is the listener's own", key=f"{where}.path",
                hint="another path, or a host of its own",
            )  # fmt: skip
        if route.timeout is not None and route.timeout.total_seconds() > timeout_seconds:
            raise SpecError(
                f"{where}.timeout is above the function's timeout ({timeout_seconds:g} s)", key=f"{where}.timeout"
            )
    once("route", found)
    return found


def once(where: str, routes: Collection[RouteSpec]) -> None:
    """Raises SpecError where two of them take the same requests."""
    seen: dict[Key, str] = {}
    for place, route in enumerate(routes):
        for key in route.keys:
            if key in seen:
                raise SpecError(
                    f"{where}[{place}]: {route.text} takes what {seen[key]} takes already", key=f"{where}[{place}]"
                )
            seen[key] = route.text
