"""`Api`: hosts or a base path, stages, and the routes that are the API's own; read from plain data and written as it.

Source of the words: Amazon API Gateway, HTTP APIs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from faas import checks, path_pattern, routes
from faas.errors import SpecError
from faas.hosts import host
from faas.plain import plain
from faas.routes import RESERVED, RouteSpec
from faas.rules import rules
from faas.rules.rules import NO_RULES, Rules
from faas.spec import NAME_PATTERN
from faas.spec_table import table
from gateway.router import DEFAULT_NAMESPACE, function_label

DEFAULT_API = "default"  # always there: where functions' own routes are
DEFAULT_STAGE = "$default"
HOSTS, STAGES, VARIABLES, ROUTES = 32, 32, 64, 2_000  # routes: what is put at once is published in one step
PATHS = 100_000  # literal beginnings of paths: of each route, at each host, in each stage

_STAGE = re.compile(r"\$default|[A-Za-z0-9_-]{1,64}")
_FUNCTION = re.compile(
    rf"(?P<name>{NAME_PATTERN.pattern})(:(?P<qualifier>[A-Za-z0-9_-]{{1,64}}|\$\{{stageVariables\.(?P<variable>[A-Za-z0-9_]{{1,64}})\}}))?"
)
_QUALIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z0-9_]{1,64}")
_VALUE = re.compile(r"[A-Za-z0-9._~:/?#&=,@+-]{0,512}")  # as AWS takes


@dataclass(frozen=True, slots=True)
class Stage:
    """`rules`: of every route in it that does not say otherwise."""

    variables: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = NO_RULES
    said: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"variables": dict(self.variables), **plain(routes.said(self.rules, self.said))}


NO_STAGE = Stage()


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """`function`: `name`, `name:alias`, `name:v7` or `name:${stageVariables.NAME}`, of the API's namespace."""

    spec: RouteSpec
    function: str

    @property
    def id(self) -> str:
        return route_id(self.spec)

    def to_dict(self) -> dict[str, Any]:
        return {"function": self.function, **self.spec.to_dict()}


def route_id(spec: RouteSpec) -> str:
    """The same as long as host, methods and path are."""
    return hashlib.sha256(spec.text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Api:
    """`base_path`: "" or `/shop`; below `/{namespace}` where there are no hosts and the namespace is not `default`."""

    namespace: str
    name: str
    hosts: tuple[str, ...] = ()
    base_path: str = ""
    stages: Mapping[str, Stage] = field(default_factory=lambda: {DEFAULT_STAGE: NO_STAGE})
    routes: tuple[ApiRoute, ...] = ()

    @property
    def label(self) -> str:
        return function_label(self.namespace, self.name)

    @property
    def places(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """(host, base path's segments) of each place where the API lies; the host "" is the listener's own."""
        base = tuple(path_pattern.segments_of(self.base_path)) if self.base_path else ()
        return tuple((name, base) for name in self.hosts) or (("", (*hostless_base(self.namespace), *base)),)

    def with_routes(self, found: tuple[ApiRoute, ...]) -> Api:
        return replace(self, routes=found)

    def to_dict(self) -> dict[str, Any]:
        """`parse` takes it back."""
        return {
            "hosts": list(self.hosts),
            "base_path": self.base_path,
            "stages": {name: stage.to_dict() for name, stage in self.stages.items()},
            "routes": [route.to_dict() for route in self.routes],
        }


def hostless_base(namespace: str) -> tuple[str, ...]:
    """Where what has no host lies: the root is the namespace `default`'s, so that none takes another's paths."""
    return () if namespace == DEFAULT_NAMESPACE else (namespace,)


def qualifier_at(function: str, stage: Stage) -> tuple[str, str]:
    """(name, qualifier) of an `ApiRoute.function` in a stage."""
    name, _, qualifier = function.partition(":")
    if qualifier.startswith("$"):
        qualifier = stage.variables.get(qualifier[len("${stageVariables.") : -1], "")
    return name, qualifier


def parse(namespace: str, name: str, data: Mapping[str, Any]) -> Api:
    """Plain data → a valid API. Raises SpecError, whose key is dotted (`stages.test.variables`)."""
    values = table("", data, {"hosts": _hosts, "base_path": _base_path}, ("stages", "routes"), optional=("base_path",))
    api = Api(namespace, name, **values, stages=_stages(data), routes=_routes(data.get("routes", ())))
    if name == DEFAULT_API and (api.hosts or api.base_path):
        raise SpecError(
            "the API default has neither hosts nor a base path: it lies at the root",
            key="hosts" if api.hosts else "base_path",
            hint="make an API of another name",
        )
    if name != DEFAULT_API and not (api.hosts or api.base_path):
        raise SpecError(f"the API {name} needs hosts or a base_path", key="hosts", hint='such as "base_path": "/shop"')
    if name == DEFAULT_API and DEFAULT_STAGE not in api.stages:
        raise SpecError("the API default keeps its stage $default: functions' own routes are there", key="stages")
    check(api)
    return api


def check(api: Api) -> None:
    """What holds between an API's parts. Raises SpecError."""
    if len(api.routes) > ROUTES:
        raise SpecError(f"an API has at most {ROUTES} routes", key="routes")
    paths = sum(1 + len(route.spec.pattern.literals) for route in api.routes)
    if paths * len(api.places) * len(api.stages) > PATHS:
        raise SpecError(
            f"hosts times stages times the segments of all routes' paths are at most {PATHS}", key="routes",
            hint="make several APIs",
        )  # fmt: skip
    _check_reserved(api)
    _check_variables(api)


def _check_reserved(api: Api) -> None:
    """Raises SpecError where a place of the listener's own host begins as the listener's own paths do."""
    for name, base in api.places:
        if name:
            continue
        beginnings = [(base, "base_path")] if base else [((stage,), f"stages.{stage}") for stage in api.stages]
        if not base:
            beginnings += [(route.spec.pattern.literals, f"routes[{n}].path") for n, route in enumerate(api.routes)]
        for segments, key in beginnings:
            if segments[:1] and segments[0] in RESERVED:
                raise SpecError(f"{key}: /{segments[0]} is the listener's own", key=key, hint="choose another")


def _check_variables(api: Api) -> None:
    """Raises SpecError where a route names a variable that a stage lacks, or that can be no qualifier there."""
    for place, route in enumerate(api.routes):
        found = _FUNCTION.fullmatch(route.function)
        if found is None or found["variable"] is None:
            continue
        for name, stage in api.stages.items():
            if not _QUALIFIER.fullmatch(stage.variables.get(found["variable"], "")):
                raise SpecError(
                    f"routes[{place}].function: the stage {name} has no variable {found['variable']} that names an"
                    " alias or version",
                    key=f"routes[{place}].function",
                    hint=f"stages.{name}.variables.{found['variable']} = an alias",
                )


def _hosts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > HOSTS:
        raise ValueError(f"a list of at most {HOSTS} host names")
    return tuple(dict.fromkeys(host(one) for one in value))


def _base_path(value: Any) -> str:
    pattern = path_pattern.parse(checks.text(value))
    if pattern.is_default or pattern.names or not pattern.segments:
        raise ValueError('a path without parameters, such as "/shop"')
    return str(value).removesuffix("/")


def _function(value: Any) -> str:
    if not isinstance(value, str) or not _FUNCTION.fullmatch(value):
        raise ValueError("a function of this namespace: name, name:alias, name:v7 or name:${stageVariables.NAME}")
    return value


def _stages(data: Mapping[str, Any]) -> Mapping[str, Stage]:
    if "stages" not in data:
        return {DEFAULT_STAGE: NO_STAGE}
    value = data["stages"]
    if not isinstance(value, Mapping) or not 1 <= len(value) <= STAGES:
        raise SpecError(f"stages must be a table of 1 to {STAGES} stages", key="stages")
    found = {}
    for name, stage in value.items():
        if not _STAGE.fullmatch(name):
            raise SpecError(f"stages: {name[:80]!r} is no stage: $default, or letters, digits, - and _", key="stages")
        where = f"stages.{name}"
        values = table(where, stage, {"variables": _variables}, rules.KEYS)
        found[name] = Stage(**values, rules=rules.parse(where, stage), said=routes.written_rules(stage))
    return found


def _variables(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > VARIABLES:
        raise ValueError(f"a table of at most {VARIABLES} names and texts")
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or not isinstance(text, str) or not _VALUE.fullmatch(text):
            raise ValueError("a table of names (letters, digits, _) and texts (letters, digits and ._~:/?#&=,@+-)")
    return dict(value)


def _routes(value: Any) -> tuple[ApiRoute, ...]:
    if not isinstance(value, list | tuple) or len(value) > ROUTES:
        raise SpecError(f"routes must be a list of at most {ROUTES} routes", key="routes")
    found = tuple(read_route(f"routes[{place}]", row) for place, row in enumerate(value))
    routes.once("routes", [route.spec for route in found])
    return found


def read_route(where: str, value: Any) -> ApiRoute:
    """Raises SpecError."""
    spec, others = routes.read(where, value, {"function": _function})
    if "function" not in others:
        raise SpecError(f"{where} needs function", key=where)
    if spec.host:
        raise SpecError(f"{where}.host: an API's routes are at its own hosts", key=f"{where}.host", hint="drop host")
    return ApiRoute(spec, others["function"])
