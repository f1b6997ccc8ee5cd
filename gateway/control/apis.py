"""APIs: hosts, base paths and stages in front of functions; listed, described, put, deleted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput
from faas.spec import NAME_PATTERN, is_namespace
from faas.web import access, json_object, read_body
from gateway.control.operations import (
    FLAG,
    TEXT,
    WHOLE,
    Operation,
    a_list,
    allow,
    an_object,
    answer,
    known_keys,
    may,
    namespace_asked,
)
from gateway.edge.apis.api import DEFAULT_API, DEFAULT_STAGE, Api, parse
from gateway.edge.apis.apis import Apis
from gateway.gateway import GATEWAY, Gateway
from gateway.router import DEFAULT_NAMESPACE, parse_name

BODY_BYTES = 4_194_304  # thousands of routes


def api_name(request: web.Request, permission: Permission) -> tuple[str, str]:
    """(namespace, name) of the API that the path names, once the caller is seen to hold `permission` there."""
    namespace, name, qualifier = parse_name(request.match_info["name"])
    if not NAME_PATTERN.fullmatch(name) or not is_namespace(namespace) or qualifier:
        raise InvalidInput(f"not an API's name: {request.match_info['name'][:160]!r}", hint="name, or name.namespace")
    allow(request, permission, namespace)
    return namespace, name


def urls(gateway: Gateway, api: Api) -> list[str]:
    """Where it is reached: at each host, and in each stage."""
    scheme, _, rest = gateway.info.public_url.partition("://")
    port = rest.partition("/")[0].rpartition(":")[2] if ":" in rest else ""
    found = []
    for host, base in api.places:
        root = f"{scheme}://{host}{f':{port}' if port else ''}" if host else gateway.info.public_url.rstrip("/")
        below = ((*base, *(() if stage == DEFAULT_STAGE else (stage,))) for stage in api.stages)
        found += [root + "".join(f"/{part}" for part in parts) for parts in below]
    return found


def every(apis: Apis, namespace: str = "") -> list[Api]:
    """Of one namespace, or of all: `default` is in each that has any, and in the namespace `default` always."""
    found = {(api.namespace, api.name): api for api in apis.every()}
    for one in apis.namespaces() | {DEFAULT_NAMESPACE}:
        found.setdefault((one, DEFAULT_API), apis.known(one, DEFAULT_API))
    return [api for (where, _), api in sorted(found.items()) if namespace in ("", where)]


def shown(gateway: Gateway, api: Api) -> dict[str, Any]:
    """An API without its routes."""
    own = len(gateway.edge.apis.of_functions(api.namespace)) if api.name == DEFAULT_API else 0
    return {
        "name": api.name,
        "namespace": api.namespace,
        "hosts": list(api.hosts),
        "base_path": api.base_path,
        "stages": {name: stage.to_dict() for name, stage in api.stages.items()},
        "urls": urls(gateway, api),
        "route_count": len(api.routes) + own,
    }


def whole(gateway: Gateway, api: Api) -> dict[str, Any]:
    """An API with the routes that are its own: what PUT takes, and what is said beside it."""
    return {**shown(gateway, api), "routes": [{"id": route.id, **route.to_dict()} for route in api.routes]}


def doubts(gateway: Gateway, api: Api) -> list[str]:
    """Routes that lead nowhere yet."""
    names = sorted({route.function.partition(":")[0] for route in api.routes})
    return [
        f"{name} is not deployed; its routes answer 404 until it is"
        for name in names
        if gateway.router.state(api.namespace, name) is None
    ]


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, namespace = request.app[GATEWAY], namespace_asked(request)
    found = [
        shown(gateway, api)
        for api in every(gateway.edge.apis, namespace)
        if may(request, Permission.READ, api.namespace)
    ]
    return answer({"apis": found})


@access(Permission.READ)
async def described(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    return answer(whole(gateway, gateway.edge.apis.known(*api_name(request, Permission.READ))))


@access(Permission.CHANGE)
async def put(request: web.Request) -> web.Response:
    gateway, (namespace, name) = request.app[GATEWAY], api_name(request, Permission.CHANGE)
    raw = await read_body(request, BODY_BYTES)
    api = await asyncio.to_thread(_read, namespace, name, raw)
    is_new = await gateway.edge.apis.put(api)
    return await told(gateway, api, [], is_new)


def _read(namespace: str, name: str, raw: bytes) -> Api:
    body = json_object(raw)
    known_keys(body, "hosts", "base_path", "stages", "routes")
    return parse(namespace, name, body)


async def told(gateway: Gateway, api: Api, warnings: list[str], is_new: bool) -> web.Response:
    """What has been put, and what there is to say of it."""

    def encoded() -> bytes:
        return json.dumps({**whole(gateway, api), "warnings": [*warnings, *doubts(gateway, api)]}).encode()

    body = await asyncio.to_thread(encoded)  # of thousands of routes
    return web.Response(body=body, status=201 if is_new else 200, content_type="application/json")


@access(Permission.CHANGE)
async def deleted(request: web.Request) -> web.Response:
    await request.app[GATEWAY].edge.apis.remove(*api_name(request, Permission.CHANGE))
    return web.Response(status=204)


_STAGES = {"type": "object", "additionalProperties": an_object(more=True, variables={"type": "object"})}
ROUTE_OBJECT = an_object(
    ("path", "function"), more=True, path=TEXT, function=TEXT, methods=a_list(TEXT), rewrite=TEXT, timeout=TEXT,
    body_limit=WHOLE, public=FLAG,
)  # fmt: skip
_LISTED: dict[str, Any] = {
    "name": TEXT, "namespace": TEXT, "hosts": a_list(TEXT), "base_path": TEXT, "stages": _STAGES,
    "urls": a_list(TEXT), "route_count": WHOLE,
}  # fmt: skip
_API = an_object(
    (*_LISTED, "routes"), more=True, **_LISTED, routes=a_list(ROUTE_OBJECT), warnings=a_list(TEXT)
)  # fmt: skip
_WISH = an_object(hosts=a_list(TEXT), base_path=TEXT, stages=_STAGES, routes=a_list(ROUTE_OBJECT))
OPERATIONS = (
    Operation(
        "GET", "/v1/apis", listed, "APIs",
        {200: an_object(("apis",), apis=a_list(an_object(tuple(_LISTED), **_LISTED)))},
        query={"namespace": TEXT},
    ),
    Operation("GET", "/v1/apis/{name}", described, "One API, with the routes that are its own", {200: _API}),
    Operation(
        "PUT", "/v1/apis/{name}", put, "Make an API, or replace it as a whole", {200: _API, 201: _API}, body=_WISH
    ),
    Operation("DELETE", "/v1/apis/{name}", deleted, "Delete an API; of `default`, what was put there", {204: None}),
)  # fmt: skip
