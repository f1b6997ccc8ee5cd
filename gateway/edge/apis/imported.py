"""An OpenAPI 3.0 or 3.1 document → an API's plain data. Pure.

An operation says where it leads: `x-faas-function` (`name` or `name:alias`), or API Gateway's own
`x-amazon-apigateway-integration` whose `uri` names a function. What is not understood is refused by its JSON pointer
(RFC 6901); vendor extensions that are nobody's here are left out, and told. Parameters' and bodies' schemas describe:
as with API Gateway's HTTP APIs, requests are not checked by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from faas.errors import InvalidInput, SpecError
from faas.path_pattern import DEFAULT
from faas.path_pattern import parse as parse_pattern
from faas.routes import ANY, METHODS
from gateway.edge.apis.api import ROUTES
from gateway.edge.apis.exported import ANY_METHOD, API, FUNCTION, OF_FUNCTION, ROUTE, SOURCE

DEPTH = 64
INTEGRATION = "x-amazon-apigateway-integration"
INTEGRATIONS = "x-amazon-apigateway-integrations"

_ROOT = {"openapi", "info", "jsonSchemaDialect", "servers", "paths", "components", "security", "tags", "externalDocs"}
_ITEM = {"summary", "description", "servers", "parameters"}
_OPERATION = {
    "tags", "summary", "description", "externalDocs", "operationId", "parameters", "requestBody", "responses",
    "deprecated", "security", "servers",
}  # fmt: skip
_INTEGRATION = {
    "type", "uri", "httpMethod", "payloadFormatVersion", "timeoutInMillis", "connectionType", "passthroughBehavior",
    "credentials",
}  # fmt: skip
_OTHER_METHODS = {"trace", "query"}  # of OpenAPI; no route has them
_ARN = re.compile(
    r"(?:arn:[\w-]+:apigateway:[\w-]*:lambda:path/\d{4}-\d\d-\d\d/functions/)?"
    r"(?:arn:[\w-]+:lambda:[\w-]*:\w*:function:)?"
    r"(?P<function>[A-Za-z0-9-]+(?::(?:[A-Za-z0-9_-]+|\$\{stageVariables\.\w+\}))?)(?:/invocations)?"
)
_DIRECTIVES = {"hosts", "base_path", "stages"}


@dataclass
class Imported:
    """`data`: as `api.parse` takes it, with what the document says of the API; `places`: each route's pointer."""

    data: dict[str, Any] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def refused(self, error: SpecError) -> InvalidInput:
        """What `api.parse` says of `data`, by its place in the document."""
        found = re.match(r"routes\[(\d+)\]", error.key)
        place = self.places[int(found[1])] if found else f"/{API}"
        return InvalidInput(f"{place}: {error.message}", hint=error.hint)


def pointer(*parts: str) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def imported(document: Mapping[str, Any]) -> Imported:
    """Raises InvalidInput: what is wrong, at which JSON pointer."""
    _check_depth(document)
    if not re.fullmatch(r"3\.[01]\.\d+", str(document.get("openapi", ""))):
        raise _refused(("openapi",), "must be 3.0.x or 3.1.x")
    reader = _Reader(document)
    reader.read()
    return reader.found


class _Reader:
    """One document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self.found = Imported()

    def read(self) -> None:
        document, found = self._document, self.found
        self._known(document, (), _ROOT, {API, FUNCTION})
        own = _table(document.get(API, {}), (API,))
        if unknown := own.keys() - _DIRECTIVES:
            raise _refused((API, min(unknown)), f"is none of {', '.join(sorted(_DIRECTIVES))}")
        found.data = {**own, "routes": []}
        if document.get("servers"):
            found.warnings.append("/servers: hosts and base paths are the API's own, and not taken from here")
        for path, item in _table(document.get("paths", {}), ("paths",)).items():
            if path.startswith("x-"):
                self._left_out(("paths", path))
                continue
            self._item(path, _table(item, ("paths", path)))
        self._told_once()

    def _item(self, path: str, item: Mapping[str, Any]) -> None:
        where = ("paths", path)
        methods = {method.lower(): method for method in METHODS} | {ANY_METHOD: ANY, "x-faas-any-method": ANY}
        if wrong := item.keys() & _OTHER_METHODS:
            raise _refused((*where, min(wrong)), f"is no method of routes: {', '.join(METHODS)}")
        self._known(item, where, _ITEM | methods.keys(), {FUNCTION})
        for key, value in item.items():
            if key not in methods:
                continue
            operation = _table(value, (*where, key))
            if operation.get(SOURCE) == OF_FUNCTION:
                self.found.warnings.append(f"{pointer(*where, key)}: is its function's own route, and left to it")
                continue
            if len(self.found.places) >= ROUTES:
                raise _refused((*where, key), f"is one more than the {ROUTES} routes that an API may have")
            route = self._route(path, methods[key], operation, (*where, key), item)
            self.found.data["routes"].append(route)
            self.found.places.append(pointer(*where, key))

    def _route(
        self, path: str, method: str, operation: Mapping[str, Any], where: tuple[str, ...], item: Mapping[str, Any]
    ) -> dict[str, Any]:
        self._known(operation, where, _OPERATION | {"isDefaultRoute"}, {FUNCTION, ROUTE, INTEGRATION, SOURCE})
        path = DEFAULT if path == "/$default" or operation.get("isDefaultRoute") is True else path
        for table, at in ((item, where[:2]), (operation, where)):
            self._parameters(path, table.get("parameters", []), at)
        route: dict[str, Any] = {"path": path, "methods": [method]}
        if path == DEFAULT:
            if method != ANY:
                raise _refused(where, f"$default takes every method: {ANY_METHOD}")
            del route["methods"]
        function = operation.get(FUNCTION, item.get(FUNCTION))
        if INTEGRATION in operation and function is None:
            function, more = self._integration(operation[INTEGRATION], (*where, INTEGRATION))
            route |= more
        function = self._document.get(FUNCTION) if function is None else function
        if function is None:
            raise _refused(where, f"leads nowhere: it needs {FUNCTION} or {INTEGRATION}")
        if ROUTE in operation:
            route |= _table(operation[ROUTE], (*where, ROUTE))
        else:
            route |= self._security(operation, where)
        return {**route, "function": function}

    def _parameters(self, path: str, parameters: Any, where: tuple[str, ...]) -> None:
        """A parameter of the path that the path does not have is a mistake; the others describe."""
        try:
            names = {name for _, name in parse_pattern(path).names}
        except ValueError as error:
            raise InvalidInput(f"{pointer(*where[:2])} must be {error}") from None
        if not isinstance(parameters, list):
            raise _refused((*where, "parameters"), "must be a list")
        for place, parameter in enumerate(parameters):
            one = self._resolved(parameter, (*where, "parameters", str(place)))
            if one.get("in") == "path" and str(one.get("name", "")).removesuffix("+") not in names:
                raise _refused((*where, "parameters", str(place)), f"{one.get('name')!r} is not in the path")

    def _integration(self, value: Any, where: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
        """(function, further keys of the route)."""
        one = self._resolved(value, where)
        if unknown := one.keys() - _INTEGRATION:
            raise _refused((*where, min(unknown)), "is not offered here")
        if str(one.get("type", "")).lower() != "aws_proxy":
            raise _refused((*where, "type"), "must be aws_proxy: routes lead to functions")
        found = _ARN.fullmatch(str(one.get("uri", "")))
        if found is None:
            raise _refused((*where, "uri"), "must name a function, as an ARN or a name")
        more: dict[str, Any] = {}
        if "payloadFormatVersion" in one:
            more["payload"] = one["payloadFormatVersion"]
        if (timeout := one.get("timeoutInMillis")) is not None:
            if not isinstance(timeout, int) or isinstance(timeout, bool):
                raise _refused((*where, "timeoutInMillis"), "must be a whole number")
            more["timeout"] = f"{timeout}ms"
        for key in ("connectionType", "passthroughBehavior", "credentials"):
            if key in one:
                self._left_out((*where, key))
        return found["function"], more

    def _security(self, operation: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
        """Credentials of this server, where the document asks for Bearer or Basic ones."""
        at = where if "security" in operation else ()
        wanted = operation.get("security", self._document.get("security", []))
        if not isinstance(wanted, list):
            raise _refused((*at, "security"), "must be a list")
        schemes = _table(_table(self._document.get("components", {}), ("components",)).get("securitySchemes", {}),
                         ("components", "securitySchemes"))  # fmt: skip
        asks = False
        for place, requirement in enumerate(wanted):
            for name in _table(requirement, (*at, "security", str(place))):
                scheme = self._resolved(schemes.get(name, {}), ("components", "securitySchemes", name))
                if scheme.get("type") != "http" or str(scheme.get("scheme", "")).lower() not in ("bearer", "basic"):
                    raise _refused(
                        (*at, "security", str(place), name),
                        f"cannot be asked for by a document: write auth in {ROUTE}",
                    )
                asks = True
        return {"public": False} if asks and {} not in wanted else {}

    def _resolved(self, value: Any, where: tuple[str, ...]) -> Mapping[str, Any]:
        """A table, or the one in this document that its `$ref` names."""
        for _ in range(8):
            table = _table(value, where)
            if "$ref" not in table:
                return table
            reference = table["$ref"]
            if not isinstance(reference, str) or not reference.startswith("#/"):
                raise _refused((*where, "$ref"), "must lead into this document: #/…")
            value = self._document
            for part in reference[2:].split("/"):
                value = value.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
        raise _refused(where, "goes through too many $ref")

    def _known(self, table: Mapping[str, Any], where: tuple[str, ...], known: set[str], ours: set[str]) -> None:
        for key in table:
            if key in known or key in ours:
                continue
            if not key.startswith("x-"):
                raise _refused((*where, key), "is not understood here")
            self._left_out((*where, key))

    def _left_out(self, where: tuple[str, ...]) -> None:
        self.found.warnings.append(f"{pointer(*where)}: left out")

    def _told_once(self) -> None:
        operations = [
            operation
            for item in self._document.get("paths", {}).values()
            for operation in (item.values() if isinstance(item, Mapping) else ())
            if isinstance(operation, Mapping)
        ]
        if any("requestBody" in one or _described(one) for one in operations):
            self.found.warnings.append("/paths: parameters and bodies are described, and not checked")


def _described(operation: Mapping[str, Any]) -> bool:
    found = operation.get("parameters", ())
    return isinstance(found, list) and any(isinstance(one, Mapping) and one.get("in") != "path" for one in found)


def _table(value: Any, where: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _refused(where, "must be an object")
    return value


def _refused(where: tuple[str, ...], why: str) -> InvalidInput:
    return InvalidInput(f"{pointer(*where) or '/'}: {why}")


def _check_depth(document: Any) -> None:
    """Level by level: nothing recurses as deep as somebody wrote."""
    level: list[Any] = [document]
    for _ in range(DEPTH):
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise InvalidInput(f"the document is more than {DEPTH} levels deep")


def _children(value: Any) -> Iterator[Any]:
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    yield from (child for child in children if isinstance(child, Mapping | list))
