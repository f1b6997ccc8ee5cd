"""`/v1/apis/{name}/openapi.json`: an API's routes as an OpenAPI document, out and in."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from faas.auth import Permission
from faas.errors import NotFound, SpecError
from faas.routes import said, unusual
from faas.rules.auth import LOGIN, AuthRule
from faas.web import access, json_object, read_body
from gateway.control.apis import BODY_BYTES, api_name, told, urls
from gateway.control.operations import TEXT, Operation, a_list, an_object
from gateway.edge.apis.api import DEFAULT_API, DEFAULT_STAGE, NO_STAGE, Api, ApiRoute, parse, qualifier_at
from gateway.edge.apis.exported import document
from gateway.edge.apis.imported import Imported, imported
from gateway.gateway import GATEWAY, Gateway


@access(Permission.READ)
async def exported(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    api = gateway.edge.apis.known(*api_name(request, Permission.READ))
    functions = gateway.edge.apis.of_functions(api.namespace) if api.name == DEFAULT_API else []
    own = [ApiRoute(spec, name) for name, spec in functions if not spec.host]
    servers, version = urls(gateway, api), gateway.info.version

    def encoded() -> bytes:
        return json.dumps(document(api, own, lambda route: _asked(gateway, api, route), servers, version)).encode()

    return web.Response(body=await asyncio.to_thread(encoded), content_type="application/json")


def _asked(gateway: Gateway, api: Api, route: ApiRoute) -> AuthRule | None:
    """Who may call in the stage $default, or the first one; a function that is not there says nothing."""
    stage = api.stages.get(DEFAULT_STAGE) or next(iter(api.stages.values()), NO_STAGE)
    name, qualifier = qualifier_at(route.function, stage)
    try:
        spec = gateway.router.resolve(api.namespace, name, qualifier).revision.spec
    except NotFound:
        rules, public = route.spec.layered(said(stage.rules, stage.said)), False
    else:
        rules, public = route.spec.layered(said(stage.rules, stage.said), unusual(spec.rules)), spec.public
    if rules.auth is not None:
        return None if rules.auth.public else rules.auth
    return None if (public if route.spec.public is None else route.spec.public) else LOGIN


@access(Permission.CHANGE)
async def put(request: web.Request) -> web.Response:
    gateway, (namespace, name) = request.app[GATEWAY], api_name(request, Permission.CHANGE)
    raw = await read_body(request, BODY_BYTES)
    found = await asyncio.to_thread(_read, raw)
    data = dict(found.data)
    try:
        known = gateway.edge.apis.known(namespace, name)
    except NotFound:
        pass
    else:  # what the document does not say of the API stays
        data = {**{key: value for key, value in known.to_dict().items() if key != "routes"}, **data}
    try:
        api = await asyncio.to_thread(parse, namespace, name, data)
    except SpecError as error:
        raise found.refused(error) from None
    is_new = await gateway.edge.apis.put(api)
    return await told(gateway, api, found.warnings, is_new)


def _read(raw: bytes) -> Imported:
    return imported(json_object(raw, "faas api import converts YAML"))


_PATH = "/v1/apis/{name}/openapi.json"
_API = an_object(("name", "namespace", "routes", "warnings"), more=True, name=TEXT, namespace=TEXT,
                 warnings=a_list(TEXT))  # fmt: skip
OPERATIONS = (
    Operation("GET", _PATH, exported, "An API's routes as an OpenAPI 3.1 document", {200: an_object(more=True)}),
    Operation(
        "PUT", _PATH, put, "Make an API's routes those of an OpenAPI 3.0 or 3.1 document", {200: _API, 201: _API},
        body=an_object(("openapi", "paths"), more=True, openapi=TEXT),
    ),
)  # fmt: skip
