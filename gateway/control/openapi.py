"""The description of the control API (OpenAPI 3.1), made from the very table that the listener serves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from faas.auth import Permission
from faas.web import needed
from gateway.control.operations import FUNCTION_NAME, TEXT, Operation, an_object

_PARAMETER = re.compile(r"\{(\w+)\}")
_ERROR = an_object(
    ("error",), error=an_object(("code", "message", "hint", "request_id"), more=True, code=TEXT, message=TEXT,
                                hint=TEXT, request_id=TEXT),
)  # fmt: skip
# What any operation may be answered with; each function adds its own at 502 and 504.
_REFUSALS = {
    400: "not valid", 401: "no or unknown credentials", 403: "not allowed", 404: "no such thing",
    409: "not now", 413: "too large", 415: "not taken", 429: "no capacity", 500: "our fault", 501: "not offered",
    502: "the function's fault", 503: "not available", 504: "the function took too long",
    507: "the disk is full",
}  # fmt: skip


def document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "faas control API", "version": version},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    permission = needed(operation.handler)
    described: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}{re.sub(r'[^a-z0-9]+', '_', operation.path)}",
        "summary": operation.summary,
        "description": f"Needs the permission {permission.value}.",
        "parameters": _parameters(operation),
        "responses": _responses(operation),
        "security": [] if permission is Permission.NOTHING else [{"bearer": []}, {"basic": []}],
        "x-permission": permission.value,
    }
    if operation.body is not None:
        content = {"application/json": {"schema": operation.body}}
        described["requestBody"] = {"content": content, "required": bool(operation.body.get("required"))}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": FUNCTION_NAME if name == "name" else {"type": "string", "minLength": 1},
        }
        for name in _PARAMETER.findall(operation.path)
    ]
    in_query = [{"name": n, "in": "query", "required": False, "schema": s} for n, s in operation.query.items()]
    return in_path + in_query


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, schema in operation.answers.items():
        response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if schema is not None:
            response["content"] = {operation.media_type: {"schema": schema}}
        responses[str(status)] = response
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, words in _REFUSALS.items():
        responses.setdefault(str(status), {"description": words, "content": error})
    return responses
