"""The audit log over HTTP: read, filtered, and checked. Nothing here changes it, or takes from it.

An administrator of one namespace sees what was done there.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict

from aiohttp import web

from faas.auth import ALL_NAMESPACES, Permission
from faas.errors import InvalidInput
from faas.spec import is_namespace
from faas.web import PRINCIPAL, access
from gateway.control.operations import FLAG, TEXT, TIME, WHOLE, Operation, a_list, allow, an_object, answer, stamp
from gateway.gateway import GATEWAY
from gateway.store.audit import End, Query

MOST_RECORDS = 1000  # of one answer
HEAD = re.compile(r"(\d{1,15}):([0-9a-f]{64})")


def _query(request: web.Request) -> Query:
    """Raises InvalidInput, Forbidden."""
    query = request.query
    try:
        since, until = (float(query[key]) if query.get(key) else None for key in ("since", "until"))
        after, limit = int(query.get("after") or 0), int(query.get("limit") or MOST_RECORDS)
    except ValueError:
        raise InvalidInput("since and until must be Unix seconds, after and limit whole numbers") from None
    times = [moment for moment in (since, until) if moment is not None]
    if not all(math.isfinite(moment) and 0 <= moment < 1e11 for moment in times):
        raise InvalidInput("since and until must be Unix seconds")
    if not 1 <= limit <= MOST_RECORDS or not 0 <= after < 2**62:
        raise InvalidInput(f"limit must be from 1 to {MOST_RECORDS}, after not negative")
    if (order := query.get("order") or "oldest") not in ("oldest", "newest"):
        raise InvalidInput("order must be oldest or newest")
    namespaces = request[PRINCIPAL].where(Permission.ADMIN)
    if namespace := query.get("namespace", ""):
        if not is_namespace(namespace):
            raise InvalidInput("namespace must be a name")
        allow(request, Permission.ADMIN, namespace)
        namespaces = frozenset({namespace})
    by, action, object_ = (query.get(key, "")[:512] for key in ("by", "action", "object"))
    return Query(
        _milliseconds(since), _milliseconds(until), by, action, object_, namespaces, after, order == "newest", limit
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)


@access(Permission.ADMIN)
async def listed(request: web.Request) -> web.Response:
    query = _query(request)
    return answer({"records": await request.app[GATEWAY].audit.find(query)})


@access(Permission.ADMIN)
async def verified(request: web.Request) -> web.Response:
    allow(request, Permission.ADMIN, ALL_NAMESPACES)
    head = None
    if written := request.query.get("head", ""):
        if not (match := HEAD.fullmatch(written)):
            raise InvalidInput("head must be SEQ:HASH, as an earlier check has told it")
        head = End(int(match[1]), match[2], 0)
    verdict = await request.app[GATEWAY].audit.verify(head)
    return answer(
        {
            "ok": not verdict.broken,
            "broken": verdict.broken,
            "count": verdict.count,
            "cut": _shown(verdict.first),
            "head": _shown(verdict.last),
        }
    )


def _shown(end: End) -> dict[str, object] | None:
    return asdict(end) | {"at": stamp(end.at / 1000)} if end.seq else None


_RECORD = an_object(
    ("seq", "time", "by", "action", "object", "outcome", "previous", "hash"), more=True, seq=WHOLE, time=TIME, by=TEXT,
    token=TEXT, address=TEXT, action=TEXT, namespace=TEXT, object=TEXT, outcome=TEXT, status=WHOLE, reason=TEXT,
    request_id=TEXT, count=WHOLE, previous=TEXT, hash=TEXT,
)  # fmt: skip
_END = {"anyOf": [an_object(("seq", "hash", "at"), seq=WHOLE, hash=TEXT, at=TIME), {"type": "null"}]}
_NUMBER = {"type": "number"}
OPERATIONS = (
    Operation(
        "GET", "/v1/audit", listed, "Who changed what, the oldest first",
        {200: an_object(("records",), records=a_list(_RECORD))},
        query={
            "since": _NUMBER, "until": _NUMBER, "by": TEXT, "action": TEXT, "object": TEXT, "namespace": TEXT,
            "after": {"type": "integer", "minimum": 0}, "order": {"type": "string", "enum": ["", "oldest", "newest"]},
            "limit": {"type": "integer", "minimum": 1, "maximum": MOST_RECORDS},
        },
    ),
    Operation(
        "GET", "/v1/audit/verify", verified, "Whether nobody has changed the audit log, or taken from it",
        {200: an_object(("ok", "broken", "count", "cut", "head"), ok=FLAG, broken=TEXT, count=WHOLE, cut=_END,
                        head=_END)},
        query={"head": TEXT},
    ),
)  # fmt: skip
