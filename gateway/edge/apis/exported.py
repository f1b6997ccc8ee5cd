"""An API's routes as an OpenAPI 3.1 document, which `imported` takes back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from faas.path_pattern import DEFAULT
from faas.routes import ANY
from faas.rules.auth import AuthRule
from gateway.edge.apis.api import Api, ApiRoute, route_id

VERSION = "3.1.0"
FUNCTION, ROUTE, API, SOURCE = "x-faas-function", "x-faas-route", "x-faas-api", "x-faas-source"
ANY_METHOD = "x-amazon-apigateway-any-method"  # OpenAPI has no word for it; API Gateway's exports have this one
OF_FUNCTION = "function"  # `x-faas-source` of a route that is in its function's faas.toml

_OWN_PLACE = {"path", "methods", "function", "host"}  # keys of a route that the document says elsewhere

Asked = Callable[[ApiRoute], AuthRule | None]  # what is asked of callers; None: nothing


def document(
    api: Api, of_functions: Sequence[ApiRoute], asked: Asked, servers: Iterable[str], version: str
) -> dict[str, Any]:
    """`of_functions`: functions' own routes in this API, without a host of their own; `servers`: base URLs."""
    paths: dict[str, dict[str, Any]] = {}
    schemes: dict[str, Any] = {}
    routes = [(route, "") for route in api.routes] + [(route, OF_FUNCTION) for route in of_functions]
    for route, source in routes:
        item = paths.setdefault("/$default" if route.spec.path == DEFAULT else route.spec.path, {})
        for verb in route.spec.verbs:
            operation = _operation(route, verb, asked(route), schemes)
            if source:
                operation[SOURCE] = source
            item[ANY_METHOD if verb == ANY else verb.lower()] = operation
    own = {key: value for key, value in api.to_dict().items() if key != "routes" and value}
    return {
        "openapi": VERSION,
        "info": {"title": api.label, "version": version},
        "servers": [{"url": url} for url in servers],
        "paths": paths,
        "components": {"securitySchemes": schemes},
        API: own,
    }


def _operation(route: ApiRoute, verb: str, rule: AuthRule | None, schemes: dict[str, Any]) -> dict[str, Any]:
    spec = route.spec
    found = {} if rule is None else _schemes(rule)
    schemes |= found
    last = len(spec.pattern.segments) - 1
    operation: dict[str, Any] = {
        "operationId": f"{route_id(spec)}-{verb.lower()}",
        "parameters": [
            {
                "name": f"{name}+" if spec.pattern.greedy and place == last else name,
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
            }
            for place, name in spec.pattern.names
        ],
        "responses": {"default": {"description": "what the function answers"}},
        "security": [{name: []} for name in found],
        FUNCTION: route.function,
        ROUTE: {key: value for key, value in spec.to_dict().items() if key not in _OWN_PLACE},
    }
    if spec.path == DEFAULT:
        operation["isDefaultRoute"] = True
    return operation


def _schemes(rule: AuthRule) -> dict[str, Any]:
    """The ways in, by names of their own."""
    found: dict[str, Any] = {}
    if rule.token:
        found["token"] = {"type": "http", "scheme": "bearer"}
        found["basic"] = {"type": "http", "scheme": "basic"}
    if rule.key is not None:
        found[f"key-{rule.key.header.lower()}"] = {"type": "apiKey", "in": "header", "name": rule.key.header}
    if rule.jwt is not None:
        found["jwt"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    if rule.authorizer is not None:
        found["authorizer"] = {"type": "apiKey", "in": "header", "name": "Authorization"}
    return found
