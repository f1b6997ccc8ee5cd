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
from faas.logins import Ended, while_allowed
from faas.protocol import LogQuery, LogRecord
from faas.web import REQUEST_ID, REQUEST_ID_HEADER, access
from gateway.control.operations import TEXT, Operation, an_object, function_name
from gateway.gateway import GATEWAY

LINES = 1_000_000
DEFAULT_LINES = 10_000
CHUNK_BYTES = 65_536
STREAMS = ("stdout", "stderr", "system")
MEDIA_TYPE = "application/x-ndjson"
FOLLOWS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}


def _query(request: web.Request, namespace: str, name: str) -> LogQuery:
    query = request.query
    try:
        since, until = (float(query[key]) if query.get(key) else None for key in ("since", "until"))
        limit = int(query.get("limit") or DEFAULT_LINES)
    except ValueError:
        raise InvalidInput("since and until must be Unix seconds, limit a whole number") from None
    if not 1 <= limit <= LINES or not all(moment is None or math.isfinite(moment) for moment in (since, until)):
        raise InvalidInput(f"limit must be from 1 to {LINES}, since and until finite numbers")
    said, stream = query.get("follow", "").lower(), query.get("stream", "")
    if said not in FOLLOWS:
        raise InvalidInput("follow must be one of 1, true, yes, 0, false, no")
    follow = FOLLOWS[said]
    if follow and until is not None:
        raise InvalidInput("follow goes on without an end: leave until out")
    if stream not in ("", *STREAMS):
        raise InvalidInput(f"stream must be one of {', '.join(STREAMS)}")
    return LogQuery(
        namespace,
        name,
        since=since,
        until=until,
        contains=query.get("filter", ""),
        request_id=query.get("request_id", ""),
        instance=query.get("instance", ""),
        stream=stream,
        follow=follow,
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
    await response.prepare(request)
    # Who may not read it any more hears its end, and nothing of why: the answer has begun.
    with contextlib.suppress(Ended):
        async with while_allowed(request, Permission.READ, where.namespace, where.name):
            await _written(response, records, follow=query.follow)
    await response.write_eof()
    return response


async def _written(response: web.StreamResponse, records: AsyncGenerator[LogRecord, None], *, follow: bool) -> None:
    async with contextlib.aclosing(records):
        waiting = bytearray()
        async for record in records:
            waiting += json.dumps(asdict(record), ensure_ascii=False).encode(errors="replace") + b"\n"
            if follow or len(waiting) >= CHUNK_BYTES:
                await response.write(bytes(waiting))
                waiting.clear()
        await response.write(bytes(waiting))


_NUMBER = {"type": "number"}
OPERATIONS = (
    Operation(
        "GET", "/v1/functions/{name}/logs", read, "What the function wrote, one JSON object a line",
        {200: an_object(("time", "message"), more=True, time=_NUMBER, message=TEXT)},
        query={
            "since": _NUMBER,
            "until": _NUMBER,
            "filter": TEXT,
            "request_id": TEXT,
            "instance": TEXT,
            "stream": {"type": "string", "enum": ["", *STREAMS]},
            "follow": {"type": "string", "enum": [*FOLLOWS]},
            "limit": {"type": "integer", "minimum": 1, "maximum": LINES},
        },
        media_type=MEDIA_TYPE,
    ),
)  # fmt: skip
