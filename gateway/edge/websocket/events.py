"""The events and messages of WebSocket APIs, in the shapes of Amazon API Gateway ("Working with WebSocket APIs", Lambda
proxy integration). Pure: identities and times come in.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.edge.websocket.api import CONNECT, DISCONNECT
from gateway.event import clock_time, query_pairs

FORBIDDEN = "Forbidden"
SERVER_ERROR = "Internal server error"
THROTTLED = "Too Many Requests"
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Peer:
    """What is known of a connection from its beginning, and stands in each of its events. `connected_at`: Unix time."""

    connection_id: str
    api_id: str
    stage: str
    domain: str
    source_ip: str
    user_agent: str
    connected_at: float
    authorizer: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


def connect(peer: Peer, fields: Iterable[tuple[str, str]], query: str, request_id: str, now: float) -> dict[str, Any]:
    """`fields`: the request's, for the function; `query` as written."""
    single, several = _joined(fields)
    event: dict[str, Any] = {"headers": single, "multiValueHeaders": several}
    if query:
        last, each = _joined(query_pairs(query))
        event |= {"queryStringParameters": last, "multiValueQueryStringParameters": each}
    context = _context(peer, CONNECT, "CONNECT", request_id, now)
    return event | {"requestContext": context, "isBase64Encoded": False}


def message(
    peer: Peer, route_key: str, body: str | bytes, request_id: str, message_id: str, now: float
) -> dict[str, Any]:
    """`body`: text, or bytes of a binary message."""
    context = _context(peer, route_key, "MESSAGE", request_id, now) | {"messageId": message_id}
    binary = isinstance(body, bytes)
    written = base64.b64encode(body).decode() if isinstance(body, bytes) else body
    return {"requestContext": context, "body": written, "isBase64Encoded": binary}


def disconnect(peer: Peer, code: int, reason: str, request_id: str, now: float) -> dict[str, Any]:
    headers = {"Host": peer.domain, "X-Forwarded-For": peer.source_ip}
    context = _context(peer, DISCONNECT, "DISCONNECT", request_id, now)
    context |= {"disconnectStatusCode": code, "disconnectReason": reason}
    several = {name: [value] for name, value in headers.items()}
    return {"headers": headers, "multiValueHeaders": several, "requestContext": context, "isBase64Encoded": False}


def _context(peer: Peer, route_key: str, kind: str, request_id: str, now: float) -> dict[str, Any]:
    context: dict[str, Any] = {
        "routeKey": route_key,
        "eventType": kind,
        "extendedRequestId": request_id,
        "requestTime": clock_time(int(now)),
        "messageDirection": "IN",
        "stage": peer.stage,
        "connectedAt": int(peer.connected_at * 1000),
        "requestTimeEpoch": int(now * 1000),
        "identity": {"sourceIp": peer.source_ip, "userAgent": peer.user_agent},
        "requestId": request_id,
        "domainName": peer.domain,
        "connectionId": peer.connection_id,
        "apiId": peer.api_id,
    }
    if peer.authorizer:
        context["authorizer"] = dict(peer.authorizer)
    return context


def _joined(fields: Iterable[tuple[str, str]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """(the last value of each name, all of them)."""
    several: dict[str, list[str]] = {}
    for name, value in fields:
        several.setdefault(name, []).append(value)
    return {name: values[-1] for name, values in several.items()}, several


def refusal(text: str, connection_id: str, request_id: str) -> bytes:
    """What a client is told of a message that came to nothing."""
    return json.dumps({"message": text, "connectionId": connection_id, "requestId": request_id}).encode()
