"""Passes HTTP requests on to http functions: streamed both ways with back-pressure; `gateway.tunnel` for WebSocket.

Nothing of the connection's own framing crosses in either direction: hop-by-hop fields are dropped, lengths are
checked, the status text of a function is never copied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from faas.errors import BadFunctionResponse, FaasError
from faas.leases import HttpRequest, HttpResponse, Trigger
from faas.rules.websocket import USUAL, WebSocketRule
from faas.web import REQUEST_ID_HEADER, SERVER, read_body, read_chunk
from gateway.edge.compression import compress
from gateway.expectation import expected, expects
from gateway.headers import content_length, inbound, outbound
from gateway.invoke import Invoker
from gateway.router import Route
from gateway.sending import Sending
from gateway.tunnel import carry, check_origin

WHOLE_BYTES = 65_536  # bodies up to this are moved as one piece: one write instead of several


async def proxy(
    request: web.Request,
    invoker: Invoker,
    route: Route,
    target: str,
    request_id: str,
    *,
    websocket: WebSocketRule | None = None,
    compressed: bool = False,
) -> web.StreamResponse:
    """Answer `request` by the function's own answer to `target` (path and query).

    `websocket`: what is asked of an upgrade; `compressed`: for
    clients that take it. Raises what the invocation raises, as long as no byte of an answer has been sent; after that
    the connection is cut.
    """
    upgrade, rule = _upgrade(request), websocket or USUAL
    if upgrade:
        check_origin(request, rule)
    fields = tuple(inbound(request, request_id))
    body = None if upgrade else await _body(request)
    call = HttpRequest(request.method, target, fields, body, request.content_length, upgrade)
    sending = Sending(request)
    try:
        async with invoker.invoke_http(route, call, trigger=Trigger.HTTP, request_id=request_id) as response:
            if upgrade and response.status == 101 and response.tunnel is not None:
                with invoker.counters(route, Trigger.HTTP).websockets().track_inprogress():
                    return await carry(request, response, response.tunnel, request_id, rule, route.revision.key)
            answer = _head(request, response, request_id)
            if upgrade:
                answer.force_close()  # what follows was meant for the other protocol
            if not isinstance(answer, web.Response):
                return await sending.send(
                    answer, response.body, content_length(response.headers), compressed=compressed
                )
            if not _bodiless(request, response):
                answer.body = await _whole(response, content_length(response.headers) or 0)
                if compressed:
                    await compress(request, answer)
            return answer
    except FaasError:
        if sending.begun is None:
            raise
        return sending.cut()


async def _body(request: web.Request) -> bytes | AsyncIterator[bytes] | None:
    """A request's body for the function, a small one whole. A client that waits for a 100 hears it when it is read."""
    if not request.body_exists:
        return None
    if expects(request):
        return _streamed(request)
    length = request.content_length
    whole = length is not None and length <= WHOLE_BYTES
    return await read_body(request, WHOLE_BYTES) if whole else _streamed(request)


def _upgrade(request: web.Request) -> str:
    """`websocket` where the request asks for it; other upgrades are ignored, as HTTP allows."""
    asked = request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"
    tokens = {token.strip().lower() for token in request.headers.get(hdrs.CONNECTION, "").split(",")}
    plain = request.method == "GET" and request.version >= (1, 1) and not request.body_exists
    return "websocket" if asked and "upgrade" in tokens and plain else ""


def _bodiless(request: web.Request, response: HttpResponse) -> bool:
    return request.method == "HEAD" or response.status in (204, 304)


def _head(request: web.Request, response: HttpResponse, request_id: str) -> web.StreamResponse:
    """The answer without its body: a `Response` where the body is none or small, else a stream."""
    if not 200 <= response.status <= 599:
        raise BadFunctionResponse("the function's answer has a status that is none")
    headers = outbound(response.headers)
    headers[REQUEST_ID_HEADER] = request_id
    headers.setdefault("Server", SERVER)
    length = content_length(response.headers)
    if _bodiless(request, response):
        if length is not None and request.method == "HEAD":
            headers["Content-Length"] = str(length)
        return web.Response(status=response.status, headers=headers)
    if length is not None and length <= WHOLE_BYTES:
        return web.Response(status=response.status, headers=headers)
    return web.StreamResponse(status=response.status, headers=headers)


async def _whole(response: HttpResponse, length: int) -> bytes:
    body = b""
    async for chunk in response.body:
        body += chunk
        if len(body) > length:
            break
    if len(body) != length:
        raise BadFunctionResponse("the function's answer is not as long as it says")
    return body


async def _streamed(request: web.Request) -> AsyncIterator[bytes]:
    await expected(request)
    while chunk := await read_chunk(request):
        yield chunk
