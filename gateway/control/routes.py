"""Routes of APIs and of functions: listed; those of APIs added and deleted one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import NotFound
from faas.routes import RouteSpec
from faas.web import access, json_body
from gateway.control.apis import ROUTE_OBJECT, api_name, doubts, every
from gateway.control.operations import (
    TEXT,
    Operation,
    a_list,
    a_whole_list,
    an_object,
    answer,
    may,
    namespace_asked,
    path_text,
)
from gateway.edge.apis.api import DEFAULT_API, Api, ApiRoute, read_route, route_id
from gateway.edge.apis.apis import Apis
from gateway.gateway import GATEWAY

OF_API, OF_FUNCTION = "api", "function"  # whose a route is: where it is changed


def shown(api: Api, spec: RouteSpec, function: str, owner: str) -> dict[str, Any]:
    return {
        "id": route_id(spec),
        "api": api.name,
        "namespace": api.namespace,
        "owner": owner,
        **spec.to_dict(),
        "methods": list(spec.verbs),
        "hosts": [spec.host] if spec.host else list(api.hosts),
        "base_path": "" if spec.host else "".join(f"/{part}" for part in api.places[0][1]),
        "function": function,
    }


def of_api(apis: Apis, api: Api) -> Iterator[dict[str, Any]]:
    """Its own, and in `default` those of functions."""
    yield from (shown(api, route.spec, route.function, OF_API) for route in api.routes)
    if api.name == DEFAULT_API:
        yield from (shown(api, spec, name, OF_FUNCTION) for name, spec in apis.of_functions(api.namespace))


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    apis, namespace = request.app[GATEWAY].edge.apis, namespace_asked(request)
    found = (
        route
        for api in every(apis, namespace)
        if may(request, Permission.READ, api.namespace)
        for route in of_api(apis, api)
    )
    return await a_whole_list("routes", found)


@access(Permission.READ)
async def of_one(request: web.Request) -> web.Response:
    apis = request.app[GATEWAY].edge.apis
    return await a_whole_list("routes", of_api(apis, apis.known(*api_name(request, Permission.READ))))


@access(Permission.READ)
async def described(request: web.Request) -> web.Response:
    apis, name = request.app[GATEWAY].edge.apis, api_name(request, Permission.READ)
    wanted, api = path_text(request, "route"), apis.known(*name)
    found = next((route for route in of_api(apis, api) if route["id"] == wanted), None)
    if found is None:
        raise NotFound(f"the API {api.label} has no route {wanted}", hint="see faas route ls")
    return answer(found)


@access(Permission.CHANGE)
async def added(request: web.Request) -> web.Response:
    gateway, (namespace, name) = request.app[GATEWAY], api_name(request, Permission.CHANGE)
    route: ApiRoute = read_route("route", await json_body(request))
    await gateway.edge.apis.add_route(namespace, name, route)
    api = gateway.edge.apis.known(namespace, name)
    warnings = doubts(gateway, api.with_routes((route,)))
    return answer({**shown(api, route.spec, route.function, OF_API), "warnings": warnings}, 201)


@access(Permission.CHANGE)
async def deleted(request: web.Request) -> web.Response:
    namespace, name = api_name(request, Permission.CHANGE)
    await request.app[GATEWAY].edge.apis.remove_route(namespace, name, path_text(request, "route"))
    return web.Response(status=204)


_ROUTE = an_object(
    ("id", "api", "namespace", "owner", "path", "methods", "function"), more=True, id=TEXT, api=TEXT, namespace=TEXT,
    owner={"type": "string", "enum": [OF_API, OF_FUNCTION]}, path=TEXT, methods=a_list(TEXT), hosts=a_list(TEXT),
    base_path=TEXT, function=TEXT,
)  # fmt: skip
_ROUTES = an_object(("routes",), routes=a_list(_ROUTE))
_PATH = "/v1/apis/{name}/routes"
OPERATIONS = (
    Operation("GET", "/v1/routes", listed, "Every route", {200: _ROUTES}, query={"namespace": TEXT}),
    Operation("GET", _PATH, of_one, "An API's routes; in `default` those of functions too", {200: _ROUTES}),
    Operation("POST", _PATH, added, "Add a route to an API", {201: _ROUTE}, body=ROUTE_OBJECT),
    Operation("GET", _PATH + "/{route}", described, "One route", {200: _ROUTE}),
    Operation("DELETE", _PATH + "/{route}", deleted, "Delete a route that is the API's own", {204: None}),
)  # fmt: skip
