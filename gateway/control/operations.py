"""`Operation`: one verb on one path of the control API, with what its description (`/v1/openapi.json`) says of it.

Each noun's module has its handlers and its `OPERATIONS`; `gateway.app` puts them all on the listener. A handler's
permission is marked on it (`faas.web.access`); within it, `allow` checks namespace and function.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from faas.audited import within
from faas.auth import Permission
from faas.dev import is_dev
from faas.errors import InvalidInput, NotFound
from faas.spec import NAME_PATTERN, is_namespace
from faas.web import PRINCIPAL, Handler, require
from gateway.router import parse_name

Schema = Mapping[str, Any]

TURN_SECONDS = 0.002  # that a list takes before others have a turn

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
FUNCTION_NAME: Schema = {
    "type": "string",
    "pattern": rf"^{NAME_PATTERN.pattern}(\.{NAME_PATTERN.pattern})?$",
    "description": "name, or name.namespace outside default",
}


def an_object(required: tuple[str, ...] = (), *, more: bool = False, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": more,
    }


def a_list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


@dataclass(frozen=True, slots=True)
class Operation:
    """`answers`: status → schema of a JSON body, or None for an answer without one; errors are implied."""

    method: str
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, Schema | None]
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    media_type: str = "application/json"  # of the successful answer


@dataclass(frozen=True, slots=True)
class FunctionName:
    namespace: str
    name: str
    qualifier: str = ""


def function_name(
    request: web.Request, permission: Permission, *, qualified: bool = False, dev: bool = False
) -> FunctionName:
    """The function that the path names, once the caller is seen to hold `permission` on it. What a `faas dev` keeps is
    changed by that alone (`dev`).

    Raises Unauthenticated, Forbidden, InvalidInput.
    """
    namespace, name, qualifier = parse_name(request.match_info["name"])
    if not NAME_PATTERN.fullmatch(name) or not is_namespace(namespace) or (qualifier and not qualified):
        raise InvalidInput(
            f"not a function's name: {request.match_info['name'][:160]!r}", hint="name, or name.namespace"
        )
    allow(request, permission, namespace, name)
    if permission is Permission.CHANGE and is_dev(name) and not dev:
        raise InvalidInput(f"{name} can only be a faas dev's, which alone changes it", hint="it ends with that command")
    return FunctionName(namespace, name, qualifier)


def allow(request: web.Request, permission: Permission, namespace: str, function: str | None = None) -> None:
    """Raise Forbidden unless the caller holds `permission` there. What is checked is the use, not the creation."""
    within(request, namespace)
    require(request[PRINCIPAL], permission, namespace, function)


def may(request: web.Request, permission: Permission, namespace: str, function: str | None = None) -> bool:
    return request[PRINCIPAL].may(permission, namespace, function)


def namespace_asked(request: web.Request) -> str:
    """The query's `namespace`, once the caller may read it; "" for all that the caller may read."""
    namespace = request.query.get("namespace", "")
    if namespace:
        if not is_namespace(namespace):
            raise InvalidInput("namespace must be a name")
        if not request[PRINCIPAL].may_in(Permission.READ, namespace):
            allow(request, Permission.READ, namespace)
    return namespace


def path_text(request: web.Request, key: str) -> str:
    """A part of the path that names something. Raises NotFound for what can be no name."""
    value = request.match_info[key]
    if len(value) > 128 or not value.isprintable():
        raise NotFound("there is no such thing")
    return value


_SECONDS = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?")
SECONDS: Schema = {"type": "number", "minimum": 0, "description": "Unix seconds"}


def moment_asked(request: web.Request, key: str) -> float | None:
    """The parameter `key`, Unix seconds written in digits; None where it is not there. Raises InvalidInput."""
    text = request.query.get(key, "")
    if text and not _SECONDS.fullmatch(text):
        raise InvalidInput(f"{key} must be Unix seconds, such as 1893456000")
    return float(text) if text else None


def stamp(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601, UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def answer(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)


async def a_whole_list(name: str, rows: Iterable[Any]) -> web.Response:
    """`{name: […]}`, made row by row: calls go on meanwhile. So `rows` must be no view of what others may change. One
    that is `bytes` is JSON already."""
    parts, began = list[bytes](), time.monotonic()
    for row in rows:
        parts.append(row if isinstance(row, bytes) else json.dumps(row).encode())
        if time.monotonic() - began > TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
    body = b"".join((b'{"', name.encode(), b'": [', b", ".join(parts), b"]}"))
    return web.Response(body=body, content_type="application/json", charset="utf-8")


def a_text(body: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A text of a request's body. Raises InvalidInput."""
    value = body.get(key, default)
    if not isinstance(value, str) or "\x00" in value or len(value) > 4096:
        raise InvalidInput(f"{key} must be a text")
    return value


def a_number(body: Mapping[str, Any], key: str, low: int, high: int) -> int:
    """A whole number of a request's body. Raises InvalidInput."""
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidInput(f"{key} must be a whole number from {low} to {high}")
    return value


def known_keys(body: Mapping[str, Any], *keys: str) -> None:
    """Refuse what nobody reads. Raises InvalidInput."""
    if unknown := [key for key in body if key not in keys]:
        raise InvalidInput(f"unknown key {unknown[0][:80]!r}", hint="known: " + ", ".join(keys))
