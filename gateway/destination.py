"""The record that `async.on_failure = "a-function"` sends there (Lambda's destinations, version 1.0)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from faas.leases import Trigger
from faas.rules.payload import Payload
from faas.web import new_request_id
from gateway.delivery import Answer, http_payload
from gateway.event import encode
from gateway.invoke import ASYNC_PAYLOAD_BYTES
from gateway.store.invocations import Kind, QueuedEvent

DEPTH = 4  # records about records: two functions that fail for each other end here


def event(failed: QueuedEvent, answer: Answer, condition: str, function: str, now: float) -> QueuedEvent | None:
    """The event for `function`; None where the chain of failures is too long."""
    depth = int(failed.meta.get("depth", 0)) + 1
    if depth > DEPTH:
        return None
    response = answer.failure.response if answer.failure else b""
    record: dict[str, Any] = {
        "version": "1.0",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "requestContext": {
            "requestId": failed.id,
            "functionArn": _arn(failed),
            "condition": condition,
            "approximateInvokeCount": failed.attempts,
        },
        "requestPayload": _request(failed),
    }
    if answer.failure is not None and answer.failure.fault:
        record["responseContext"] = {
            "statusCode": 200,
            "executedVersion": str(answer.revision),
            "functionError": "Unhandled",
        }
        record["responsePayload"] = _json(response)
    payload = encode(record)
    if len(payload) > ASYNC_PAYLOAD_BYTES and "responsePayload" in record:
        record["responsePayload"] = {"errorType": failed.error_type, "errorMessage": failed.error_message}
        payload = encode(record)
    return QueuedEvent(
        id=new_request_id(),
        namespace=failed.namespace,
        function=function,
        trigger=Trigger.ASYNC,
        payload=payload,
        meta={"depth": depth},
        created_at=now,
    )


def _arn(failed: QueuedEvent) -> str:
    qualifier = failed.qualifier or "$LATEST"
    return f"arn:aws:lambda:local:{failed.namespace}:function:{failed.function}:{qualifier}"


def _request(failed: QueuedEvent) -> Any:
    if failed.kind is Kind.HTTP:
        return _json(http_payload(failed, failed.meta.get("payload", Payload.V2)))
    if failed.kind is Kind.FILE:
        return dict(failed.meta)  # where the file is; its content stays there
    return _json(failed.payload)


def _json(payload: bytes) -> Any:
    """The value, or the text where it is none."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload.decode(errors="replace")
