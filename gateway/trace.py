"""Trace ids of requests: W3C's `traceparent` and `tracestate`, and AWS's `X-Amzn-Trace-Id`; checked, made, passed on.

Sources: W3C Trace Context (level 1), 3.2 and 3.3; AWS X-Ray, "Tracing header".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp import web
from multidict import MultiMapping

from faas.trace_id import new_trace_id

TRACEPARENT, TRACESTATE, AMAZON = "traceparent", "tracestate", "x-amzn-trace-id"
NAMES = frozenset({TRACEPARENT, TRACESTATE, AMAZON})
STATE_CHARACTERS = 512  # what must be passed on at least; more is dropped
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\x20-\x7e\t]*")
_AMAZON = re.compile(
    r"(?=.{1,256}\Z)[A-Za-z0-9]{1,32}=[\x21-\x3a\x3c-\x7e]{1,128}(;\s?[A-Za-z0-9]{1,32}=[\x21-\x3a\x3c-\x7e]{1,128})*;?"
)


@dataclass(frozen=True, slots=True)
class Parent:
    """A valid `traceparent`."""

    trace: str  # 32 digits
    span: str  # 16 digits
    flags: str = "01"

    @property
    def sampled(self) -> bool:
        return bool(int(self.flags, 16) & 1)

    def __str__(self) -> str:
        return f"00-{self.trace}-{self.span}-{self.flags}"


@dataclass(slots=True)
class Trace:
    """What a request's trace fields say, and what its function is told. Each is "" or None where there is none."""

    parent: Parent | None = None
    state: str = ""
    amazon: str = ""

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Header fields for the function, names in lower case."""
        found = [(AMAZON, self.amazon)] if self.amazon else []
        if self.parent is not None:
            found.append((TRACEPARENT, str(self.parent)))
            if self.state:
                found.append((TRACESTATE, self.state))
        return found

    @property
    def told(self) -> str:
        """As logs show it."""
        return str(self.parent) if self.parent is not None else self.amazon


TRACE = web.RequestKey("trace", Trace)


def parent(text: str) -> Parent | None:
    """A `traceparent`'s value; None where it is none (3.2.2). A later version's first four parts are read."""
    found = _PARENT.fullmatch(text.strip()) if len(text) <= 256 else None
    if found is None or (found[1] == "00" and found[5]):
        return None
    return Parent(found[2], found[3], found[4] if found[1] == "00" else f"{int(found[4], 16) & 1:02x}")


def amazon(text: str) -> str:
    """An `X-Amzn-Trace-Id`'s value as it was sent; "" where it is none."""
    return text if _AMAZON.fullmatch(text) else ""


def read(request: web.Request) -> Trace | None:
    """What the request's own fields say; None where it has none, which costs three looks."""
    return read_fields(request.headers)


def read_fields(headers: MultiMapping[str]) -> Trace | None:
    """The same of header fields."""
    first, id_ = headers.getall(TRACEPARENT, ()), headers.get(AMAZON)
    if not first and id_ is None:
        if TRACESTATE not in headers:
            return None
        return Trace()  # a state without a parent is dropped
    found = Trace(amazon=amazon(id_ or ""))
    found.parent = parent(first[0]) if len(first) == 1 else None
    if found.parent is not None:
        state = ",".join(headers.getall(TRACESTATE, ()))
        found.state = state if len(state) <= STATE_CHARACTERS and _STATE.fullmatch(state) else ""
    return found


def of(request: web.Request) -> Trace:
    """The request's trace with an `X-Amzn-Trace-Id`, made where there was none: what Lambda-style functions get."""
    found = request.get(TRACE)
    if found is None:
        found = request[TRACE] = read(request) or Trace()
    found.amazon = found.amazon or new_trace_id()
    return found
