"""Payload format 1.0, both ways (REST APIs, and HTTP APIs that ask for it). What holds in both formats stands in
`gateway.event`.

The event's shape: `resource`, `path`, `httpMethod`, `headers`, `multiValueHeaders`, `queryStringParameters`,
`multiValueQueryStringParameters`, `pathParameters`, `stageVariables`, `requestContext`, `body`, `isBase64Encoded`; what
a request has not is null. Of what comes more than once the single form has the last one. Cookies are a field like
others. `path` is without the stage, but with an API's base path, as behind API Gateway's domain names;
`requestContext.path` as it came.

The answer's: `statusCode` (it must be there), `headers`, `multiValueHeaders`, `body` (text), `isBase64Encoded`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from faas.errors import BadFunctionResponse
from gateway.event import (
    OWN_PATH,
    Answer,
    Routed,
    body_text,
    clock_time,
    collected,
    fields_of,
    is_streamed,
    query_pairs,
    status_of,
    text_body,
    written,
)
from gateway.headers import outbound

# What API Gateway knows of its own kinds of callers: all of them are null here.
_NOBODY = dict.fromkeys(
    (
        "accessKey",
        "accountId",
        "caller",
        "cognitoAuthenticationProvider",
        "cognitoAuthenticationType",
        "cognitoIdentityId",
        "cognitoIdentityPoolId",
        "principalOrgId",
        "user",
        "userArn",
    )
)


def http_event_v1(
    *,
    method: str,
    path: str,
    query: str,
    fields: Iterable[tuple[str, str]],
    body: bytes,
    protocol: str,
    source_ip: str,
    request_id: str,
    function: str,
    account: str,
    now: float,
    routed: Routed = OWN_PATH,
) -> dict[str, Any]:
    """The event of one request; what is given is as for `gateway.event.http_event`."""
    path = written(path)
    headers = _lists(fields)
    single = _last(headers)
    query_lists = _lists(query_pairs(written(query)))
    text, encoded = body_text(body, single) if body else (None, False)
    resource = routed.pattern.partition(" ")[2] or routed.pattern  # `GET /users/{id}` without its method
    host = single.get("host", "")
    return {
        "version": "1.0",
        "resource": resource,
        "path": _without_stage(path, routed.stage_at),
        "httpMethod": method,
        "headers": single,
        "multiValueHeaders": headers,
        "queryStringParameters": _last(query_lists) or None,
        "multiValueQueryStringParameters": query_lists or None,
        "requestContext": {
            "accountId": account,
            "apiId": routed.api or function,
            "authorizer": flat_authorizer(routed.authorizer, account),
            "domainName": host,
            "domainPrefix": host.partition(".")[0] if routed.api else function,
            "extendedRequestId": request_id,
            "httpMethod": method,
            "identity": {**_NOBODY, "sourceIp": source_ip, "userAgent": single.get("user-agent", "")},
            "path": path,
            "protocol": protocol,
            "requestId": request_id,
            "requestTime": clock_time(int(now)),
            "requestTimeEpoch": int(now * 1000),
            "resourceId": None,
            "resourcePath": resource,
            "stage": routed.stage,
        },
        "pathParameters": dict(routed.parameters) or None,
        "stageVariables": dict(routed.variables) or None,
        "body": text,
        "isBase64Encoded": encoded,
    }


def _without_stage(path: str, at: int) -> str:
    """A path whose segment `at` (from 0; -1: none) is its stage, as a REST API's resource has it."""
    if at < 0:
        return path
    segments = path.split("/")
    del segments[at + 1]
    return "/".join(segments) or "/"


def _lists(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for name, value in pairs:
        lists.setdefault(name, []).append(value)
    return lists


def _last(lists: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: values[-1] for name, values in lists.items()}


def flat_authorizer(context: Mapping[str, Any], account: str) -> dict[str, Any]:
    """A JWT's `claims` and `scopes`; what a function said of the caller flat and as texts, as API Gateway has it."""
    flat = context.get("lambda")
    if flat is not None:
        return {"principalId": account, **{name: _as_text(value) for name, value in flat.items()}}
    return {"claims": None, "scopes": None, **context.get("jwt", {})}


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def http_answer_v1(payload: bytes, content_type: str = "application/json") -> Answer:
    """A function's payload → (status, checked headers, body). Raises BadFunctionResponse: here nothing is inferred."""
    if is_streamed(content_type):
        return collected(payload)
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or "statusCode" not in value:
        raise BadFunctionResponse("the function's answer has no statusCode, which payload format 1.0 asks for")
    body = value.get("body")
    if not isinstance(body, str | None):
        raise BadFunctionResponse("the function's body is no text, which payload format 1.0 asks for")
    headers = outbound(_merged(value))
    headers.setdefault("Content-Type", "application/json")
    encoded = value.get("isBase64Encoded") is True
    return status_of(value["statusCode"]), headers, text_body(body or "", base64_encoded=encoded)


def _merged(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Both kinds of headers as one list; a pair that is in both is there once."""
    several = fields_of({"multiValueHeaders": value.get("multiValueHeaders")})
    there = {(name.lower(), content) for name, content in several}
    single = fields_of({"headers": value.get("headers")})
    return [(name, content) for name, content in single if (name.lower(), content) not in there] + several
