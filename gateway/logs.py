"""A function's log as lines of JSON, as they are and, on request, as they come."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import cast

from aiohttp import web

from faas.auth import Permission
from faas.errors import InvalidInput
from faas.protocol import LogQuery, LogRecord
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, access
from gateway.gateway import GATEWAY
from gateway.operations import TEXT, Operation, an_object, function_name

LINES = 1_000_000
DEFAULT_LINES = 10_000
CHUNK_BYTES = 65_536
MEDIA_TYPE = "application/x-ndjson"


def _query(request: web.Request, namespace: str, name: str) -> LogQuery:
    query = request.query
    try:
        since = float(query["since"]) if query.get("since") else None
        limit = int(query.get("limit") or DEFAULT_LINES)
    except ValueError:
        raise InvalidInput("since must be Unix seconds and limit a whole number") from None
    if not 1 <= limit <= LINES or (since is not None and not math.isfinite(since)):
        raise InvalidInput(f"limit must be from 1 to {LINES}, since a finite number")
    return LogQuery(
        namespace,
        name,
        since=since,
        contains=query.get("filter", ""),
        request_id=query.get("request_id", ""),
        follow=query.get("follow", "").lower() in ("1", "true", "yes"),
        limit=limit,
    )


@access(Permission.READ)
async def read(request: web.Request) -> web.StreamResponse:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.READ)
    gateway.deployer.known(where.namespace, where.name)
    query = _query(request, where.namespace, where.name)
    # Streamed, so its head is gone before the middleware could add the id.
    response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE, REQUEST_ID_HEADER: request[REQUEST_ID]})
    records = cast("AsyncGenerator[LogRecord, None]", gateway.worker.logs(query))
    async with contextlib.aclosing(records):
        await response.prepare(request)
        waiting = bytearray()
        async for record in records:
            waiting += json.dumps(asdict(record), ensure_ascii=False).encode(errors="replace") + b"\n"
            if query.follow or len(waiting) >= CHUNK_BYTES:
                await response.write(bytes(waiting))
                waiting.clear()
        await response.write_eof(bytes(waiting))
    return response


_NUMBER = {"type": "number"}
OPERATIONS = (
    Operation(
        "GET", "/v1/functions/{name}/logs", read, "What the function wrote, one JSON object a line",
        {200: an_object(("time", "message"), more=True, time=_NUMBER, message=TEXT)},
        query={
            "since": _NUMBER,
            "filter": TEXT,
            "request_id": TEXT,
            "follow": {"type": "string", "enum": ["", "0", "1"]},
            "limit": {"type": "integer", "minimum": 1, "maximum": LINES},
        },
        media_type=MEDIA_TYPE,
    ),
)  # fmt: skip
