"""`Expect: 100-continue` (RFC 9110, 10.1.1): said when the body is wanted, and not before; and what was announced in
vain, after which a connection ends."""

from __future__ import annotations

from aiohttp import hdrs, web

from faas.errors import ExpectationFailed

SAID = web.RequestKey("said_100", bool)


def expects(request: web.Request) -> bool:
    """Whether the client waits for a 100 before it sends its body. Raises ExpectationFailed for any other wish."""
    expectations = request.headers.getall(hdrs.EXPECT, ())
    if not expectations or request.version < (1, 1):  # HTTP/1.0 knows none, and a 1xx would be its answer
        return False
    if len(expectations) > 1 or expectations[0].strip().lower() != "100-continue":
        raise ExpectationFailed("only 100-continue can be expected")
    return True


async def expected(request: web.Request) -> None:
    """Say 100 Continue where the client waits for it. Raises ExpectationFailed."""
    if expects(request) and request.transport is not None and not request.transport.is_closing():
        request[SAID] = True
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def close_in_doubt(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """End the connection with an answer before which no 100 was said, or that declines an upgrade: whether what comes
    next is the body or the protocol that was announced, or another request, nobody can tell."""
    headers = request.headers
    unsaid = hdrs.EXPECT in headers and request.body_exists and SAID not in request
    if (unsaid or hdrs.UPGRADE in headers) and response.status != 101:
        response.force_close()
        if request.version >= (1, 1):
            response.headers[hdrs.CONNECTION] = "close"
