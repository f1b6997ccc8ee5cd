"""What an authorizer is asked by: the values of its identity sources, and the event that it gets."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import unquote, unquote_plus

from aiohttp import web

from faas.remote import client_address
from faas.rules.auth import IDENTITY, AuthorizerRule
from faas.rules.payload import Payload
from faas.web import REQUEST_ID
from gateway.edge.auth.policy import method_arn
from gateway.edge.entry import Entry
from gateway.event import Routed
from gateway.headers import as_sent
from gateway.payloads import FORMATS


def values_of(request: web.Request, entry: Entry, sources: tuple[str, ...]) -> tuple[str, ...] | None:
    """The values of `sources`, in their order; None where one is missing or empty."""
    values = tuple(_value(request, entry, source) for source in sources)
    return values if all(values) else None


def _value(request: web.Request, entry: Entry, source: str) -> str:
    found = IDENTITY.fullmatch(source)
    assert found is not None, "the rule was checked when it was read"
    match found.lastgroup:
        case "header":
            return ",".join(request.headers.getall(found["header"], ()))
        case "query":
            return ",".join(_parameter(entry.target.query, found["query"]))
        case "variable":
            return entry.variables.get(found["variable"], "")
    of_context = {
        "routeKey": entry.pattern,
        "stage": entry.stage,
        "httpMethod": request.method,
        "path": entry.target.path,
        "identity.sourceIp": client_address(request),
    }
    return of_context[found["context"]]


def _parameter(query: str, name: str) -> list[str]:
    pairs = (part.partition("=") for part in query.split("&"))
    return [unquote_plus(value) for key, _, value in pairs if unquote_plus(key) == name]


def arns_of(request: web.Request, entry: Entry) -> tuple[str, ...]:
    """What stands for the request in a policy: its path as it was written, and decoded. Neither spelling gets by a
    policy that is about the other."""
    api, path = entry.api or entry.route.label, entry.target.path
    return tuple(dict.fromkeys(method_arn(api, entry.stage, request.method, one) for one in (path, unquote(path))))


def others_of(request: web.Request, entry: Entry) -> tuple[str, ...]:
    """What else the request may be taken for, so that a policy that denies that denies it: `/admin` where it says
    `/admin/`, GET where HEAD is asked."""
    api, path = entry.api or entry.route.label, entry.target.path
    methods = ("HEAD", "GET") if request.method == "HEAD" else (request.method,)
    paths = {one for spelled in (path, unquote(path)) for one in (spelled, spelled.rstrip("/"))}
    return tuple(method_arn(api, entry.stage, method, one) for method in methods for one in paths)


def event_of(request: web.Request, entry: Entry, rule: AuthorizerRule, values: tuple[str, ...]) -> dict[str, Any]:
    """The request without its body, as API Gateway shows it to a REQUEST authorizer. It gets every field as
    the client sent it: what it is to judge may stand in any, and what a route makes of them is for the function."""
    event = FORMATS[rule.format].event(
        method=request.method,
        path=entry.target.path,
        query=entry.target.query,
        fields=as_sent(request, request[REQUEST_ID]),
        body=b"",
        protocol=f"HTTP/{request.version.major}.{request.version.minor}",
        source_ip=client_address(request),
        request_id=request[REQUEST_ID],
        function=entry.route.label,
        account="anonymous",
        now=time.time(),
        routed=Routed(
            entry.api, entry.pattern, entry.stage, entry.parameters, entry.variables, stage_at=entry.stage_at
        ),
    )
    for of_the_body in ("body", "isBase64Encoded"):
        event.pop(of_the_body, None)
    arn = arns_of(request, entry)[0]
    if rule.format is Payload.V1:
        joined = ",".join(values)
        return {**event, "type": "REQUEST", "methodArn": arn, "identitySource": joined, "authorizationToken": joined}
    return {**event, "type": "REQUEST", "routeArn": arn, "identitySource": list(values)}
