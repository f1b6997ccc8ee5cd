"""Header fields on their way through: what a function may be told, and what it may say to a client.

Values are texts with one character per byte (latin-1) wherever they are for the wire, as `faas.leases` has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from aiohttp import hdrs, web
from multidict import CIMultiDict

from faas.errors import BadFunctionResponse
from faas.header_changes import HeaderChanges
from faas.proxies import Client
from faas.remote import client
from gateway.trace import NAMES as TRACE_NAMES
from gateway.trace import TRACE

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# What we say ourselves, never the client: a function may believe these.
OURS = frozenset(
    {
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
    }
)
NOT_PASSED = HOP_BY_HOP | OURS | {"expect", "x-faas-bypass"}  # the last: an administrator's token
_NOT_ANSWERED = HOP_BY_HOP | {"content-length", "x-request-id"}

CHANGES = web.RequestKey("header_changes", HeaderChanges)  # what the route adds and removes
WITHHELD: web.RequestKey[frozenset[str]] = web.RequestKey("withheld", frozenset)  # names in lower case: checked by us

MAX_FIELDS = 256  # of a function's answer
MAX_FIELDS_BYTES = 65_536

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def inbound(request: web.Request, request_id: str) -> list[tuple[str, str]]:
    """A request's fields for the function, after the route's changes."""
    fields, changes = as_sent(request, request_id), request.get(CHANGES)
    return fields if changes is None else changes.of_fields(fields)


def as_sent(request: web.Request, request_id: str) -> list[tuple[str, str]]:
    """A request's fields, names in lower case: no hop-by-hop ones, ours set fresh.

    Names with `_` are dropped, as nginx does: WSGI knows no difference between it and `-`, and would read
    `X_Forwarded_For` as ours. What the doorman has put aside as WITHHELD is not passed on.
    """
    dropped: set[str] | frozenset[str] = NOT_PASSED
    if withheld := request.get(WITHHELD):
        dropped = dropped | withheld
    if (traced := request.get(TRACE)) is not None:
        dropped = dropped | TRACE_NAMES
    connection = request.headers.getall(hdrs.CONNECTION, ())
    if connection:
        dropped = dropped.union(*(_listed(value) for value in connection))
    fields = []
    for key, value in request.headers.items():
        name = key.lower()
        if name in dropped or "_" in name:
            continue
        fields.append((name, value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("latin-1")))
    if traced is not None:
        fields += traced.fields
    fields += told(client(request), request.headers.get(hdrs.HOST, ""), request_id)
    return fields


def told(asks: Client, host: str, request_id: str) -> list[tuple[str, str]]:
    """What we tell a function of who asks, and for what host: `OURS`."""
    fields = [
        ("forwarded", asks.forwarded(host)),
        ("x-forwarded-for", asks.forwarded_for),
        ("x-forwarded-proto", asks.scheme),
    ]
    if host:
        fields.append(("x-forwarded-host", host))
    fields.append(("x-request-id", request_id))
    return fields


def outbound(fields: Iterable[tuple[str, str]]) -> CIMultiDict[str]:
    """A function's fields for the client: checked, no hop-by-hop ones, no framing. Raises BadFunctionResponse."""
    answer: CIMultiDict[str] = CIMultiDict()
    dropped: set[str] | frozenset[str] = _NOT_ANSWERED
    size = 0
    for count, (name, value) in enumerate(fields):
        lower = name.lower()
        if lower == "connection":
            dropped = dropped | _listed(value)
        size += len(name) + len(value)
        if count >= MAX_FIELDS or size > MAX_FIELDS_BYTES:
            raise BadFunctionResponse(
                f"the function's answer has more than {MAX_FIELDS} header fields or {MAX_FIELDS_BYTES} bytes of them"
            )
        if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
            raise BadFunctionResponse("the function's answer has a header field that HTTP does not allow")
        if lower not in dropped:
            answer.add(name, value if value.isascii() else _for_aiohttp(value))
    for name in dropped - _NOT_ANSWERED:  # a Connection field may come after what it names
        answer.popall(name, None)
    return answer


def vary(headers: CIMultiDict[str], name: str) -> None:
    """Say that the answer would be another for another field `name` of the request."""
    said = ",".join(headers.getall("Vary", ()))
    names = [one.strip() for one in said.split(",") if one.strip()]
    if "*" not in names and name.lower() not in (one.lower() for one in names):
        headers["Vary"] = ", ".join([*names, name])


def content_length(fields: Iterable[tuple[str, str]]) -> int | None:
    """The declared length of a function's answer; None where there is none. Raises BadFunctionResponse."""
    lengths = {value.strip() for name, value in fields if name.lower() == "content-length"}
    if not lengths:
        return None
    length = lengths.pop()
    if lengths or not length.isascii() or not length.isdigit() or len(length) > 18:
        raise BadFunctionResponse("the function's answer has a Content-Length that is none")
    return int(length)


def _listed(value: str) -> set[str]:
    """The names that a Connection field lists; `close` among them is no field, and harms none."""
    return {item.strip().lower() for item in value.split(",") if item.strip()}


def _for_aiohttp(value: str) -> str:
    """Bytes as latin-1 → the text whose UTF-8 encoding, which aiohttp sends, is those bytes, where there is one."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value.encode("ascii", "replace").decode()
