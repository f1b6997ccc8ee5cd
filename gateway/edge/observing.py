"""The outermost middleware of both listeners: tells the `Witness` of every request, and makes its span."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from faas.remote import client_address
from faas.web import PRINCIPAL, REQUEST_ID
from gateway import trace
from gateway.edge.caller import CALLER
from gateway.edge.entry import API, ENTRY
from gateway.edge.spans import Spans
from gateway.edge.witness import GONE, Witness
from gateway.flight import FLIGHT, Flight
from gateway.sending import SENT
from gateway.trace import TRACE

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def observing(witness: Witness, spans: Spans | None, listener: str) -> Middleware:
    """For one listener: public | api."""

    @web.middleware
    async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        if (found := trace.read(request)) is not None:
            request[TRACE] = found
        sent = found.told if found is not None else ""
        span = spans.begin(request, began) if spans is not None else None
        status, size = GONE, 0
        try:
            response = await handler(request)
            status, size = response.status, _size(response)
            return response
        finally:
            flight = request.get(FLIGHT)
            if span is not None:
                span.end(request, status, flight)
            if witness.watching or API in request:
                _tell(witness, request, listener, status, size, time.perf_counter() - began, sent, flight)

    return cast("Middleware", observed)


def _tell(
    witness: Witness,
    request: web.Request,
    listener: str,
    status: int,
    size: int,
    seconds: float,
    sent: str,
    flight: Flight | None,
) -> None:
    entry, caller = request.get(ENTRY), request.get(CALLER)
    principal = request.get(PRINCIPAL) if caller is None else caller.principal
    headers = request.headers
    witness.saw(
        method=request.method,
        target=request.raw_path,
        status=status,
        request_id=request.get(REQUEST_ID, ""),
        seconds=seconds,
        route=flight.route if flight is not None else entry.route if entry is not None else None,
        entry=entry,
        api=request.get(API, ""),
        caller="" if principal is None or (caller is not None and caller.is_stranger) else principal.name,
        address=client_address(request),
        agent=headers.get(hdrs.USER_AGENT, ""),
        referer=headers.get(hdrs.REFERER, ""),
        trace=sent or (found.told if (found := request.get(TRACE)) is not None else ""),
        bytes_in=request.content_length or _read(request),
        bytes_out=size,
        cold=flight is not None and flight.cold is not None,
        listener=listener,
        version=f"{request.version.major}.{request.version.minor}",
    )


def _read(request: web.Request) -> int:
    """Bytes that came of a body without a length."""
    return request.content.total_bytes if request.body_exists else 0


def _size(response: web.StreamResponse) -> int:
    """Bytes of the body, as far as it was sent."""
    if SENT in response:
        return response[SENT]
    if isinstance(response, web.Response) and not response.prepared:
        return response.content_length or 0
    return response.body_length if response.prepared else 0
