"""Shared aiohttp pieces: request ids, errors as responses, and the one place where permissions are checked."""

from __future__ import annotations

import asyncio
import base64
import binascii
import copy
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import hdrs, web

from faas.attempts import Attempts, Told
from faas.audit import Trail
from faas.audited import DRAFT, Draft, changes, recorded
from faas.auth import ANONYMOUS, Authenticator, Permission, Principal
from faas.bodies import BODIES, BodyLimit, Share
from faas.errors import (
    FaasError,
    Forbidden,
    FunctionError,
    InvalidInput,
    Paused,
    PayloadTooLarge,
    RequestTimeout,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from faas.remote import client_address

log = logging.getLogger("faas.web")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = web.RequestKey("request_id", str)
PRINCIPAL = web.RequestKey("principal", Principal)
BODY_LIMIT = web.RequestKey("body_limit", BodyLimit)  # a narrower one than its reader's
REQUEST_ID_HEADER = "X-Request-Id"
SHOWN = 200  # characters of a path in the log
SERVER = "faas"  # what the field Server says, where a function says nothing else
LOGIN_HINT = "log in again: faas login"  # where credentials are unknown
PROGRESS_SECONDS = 60.0  # a body of which nothing comes for this long is given up
# Bodies that are held in memory must come faster than that: this much in PROGRESS_SECONDS (1 KB a second), else one
# byte a minute would hold the rest for ever; and be there after BODY_SECONDS (the largest at 21 KB a second).
PACE_BYTES = 60_000
BODY_SECONDS = 300.0
HEAD_SECONDS = 30.0  # a connection without a whole request head is closed after this
# How every listener's runner is made: `Runner(app, **RUNNER_OPTIONS)` of `faas.runner`. Bodies are passed on as they
# came, and a client who goes away ends its request.
RUNNER_OPTIONS: dict[str, Any] = {
    "keepalive_timeout": HEAD_SECONDS,
    "max_line_size": 16_384,  # as AWS's load balancers take; each header field has half of it
    "auto_decompress": False,
    "handler_cancellation": True,
    "access_log": None,
}
_HOST = re.compile(r"[A-Za-z0-9._~-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


def new_request_id() -> str:
    """A random id in UUID form, as Lambda's are (made by hand: `uuid4` costs five times as much)."""
    h = secrets.token_hex(16)
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-8{h[17:20]}-{h[20:]}"


def error_body(error: FaasError, request_id: str) -> dict[str, Any]:
    """The native API's error object (contract §5)."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint, "request_id": request_id}}


def error_headers(error: FaasError) -> dict[str, str]:
    headers = waits(error)
    if isinstance(error, Throttled | Paused):
        headers["Reason"] = error.reason
    elif isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = error.challenge
    if isinstance(error, FunctionError):
        headers["X-Error-Type"] = error.error_type
    return headers


def waits(error: FaasError) -> dict[str, str]:
    """How long to wait before the next try, where that may help."""
    if isinstance(error, Throttled | Paused):
        return {"Retry-After": str(error.retry_after)}
    return {"Retry-After": "1"} if error.status == 503 else {}


def error_response(error: FaasError, request_id: str) -> web.Response:
    return web.json_response(error_body(error, request_id), status=error.status, headers=error_headers(error))


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost middleware: every request gets an id, every error becomes one response in one form."""
    request_id = request[REQUEST_ID] = new_request_id()
    try:
        response = await handler(request)
    except FaasError as error:
        log_failure(request.method, request.path, error, request_id)
        response = error_response(error, request_id)
        if isinstance(error, RequestTimeout):
            response.force_close()  # the rest of the body may still come, some day
    except web.HTTPException as error:
        response = _translated(error, request_id)
    except (ConnectionError, TimeoutError):
        raise
    except Exception:
        log.exception("request failed", extra={"request_id": request_id})
        response = error_response(FaasError(f"our fault; it is logged with request id {request_id}"), request_id)
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request_id
        response.headers.setdefault(hdrs.SERVER, SERVER)
    return response


def log_failure(method: str, path: str, error: FaasError, request_id: str) -> None:
    """What is ours to mend, and what the machine lacks, is in the log by its id. What a caller did wrong, or came too
    much of, is in the access log: here it would be theirs to fill the disk with."""
    extra = {"request_id": request_id}
    if error.status == FaasError.status:
        log.error("request failed", exc_info=error, extra=extra)
        return
    ours = isinstance(error, Unavailable) and not isinstance(error, Paused)
    level = logging.WARNING if ours else logging.DEBUG
    words = (method, path[:SHOWN], error.status, error.code, error.message)
    log.log(level, "%s %s: %d %s: %s", *words, extra=extra)


def with_command(error: FunctionError, function: str, request_id: str) -> FunctionError:
    """`error` for somebody who may read the log of `function`, with the command that shows what it wrote."""
    shown = copy.copy(error)
    shown.hint = "\n".join(filter(None, (error.hint, f"faas logs {function} --request-id {request_id}")))
    return shown


def _translated(error: web.HTTPException, request_id: str) -> web.StreamResponse:
    """aiohttp's own refusals (no route, wrong method, body too large) in our form."""
    if error.status < 400:
        return error
    code = {404: "NotFound", 405: "MethodNotAllowed", 413: "PayloadTooLarge"}.get(error.status, "InvalidInput")
    body = {"error": {"code": code, "message": error.reason.lower(), "hint": "", "request_id": request_id}}
    headers = {hdrs.ALLOW: error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else {}
    return web.json_response(body, status=error.status, headers=headers)


_ACCESS = "__faas_access__"


def access(permission: Permission) -> Callable[[Handler], Handler]:
    """Mark a handler with the permission that its route needs (a plain function, not a bound method)."""

    def mark(handler: Handler) -> Handler:
        setattr(handler, _ACCESS, permission)
        return handler

    return mark


def needed(handler: object) -> Permission:
    """A handler's permission. What nobody marked is the administrator's alone."""
    marked = getattr(handler, _ACCESS, Permission.ADMIN)
    assert isinstance(marked, Permission)
    return marked


def credentials(request: web.Request) -> tuple[str, str | None] | None:
    """(token, user name or None) of a request: Bearer, or Basic as OpenFaaS's and Docker's clients send it.

    Raises Unauthenticated where the header is there and makes no sense.
    """
    header = request.headers.get(hdrs.AUTHORIZATION)
    if header is None:
        return None
    if not header.isascii():  # nobody's token is; and what is not even UTF-8 could not be compared
        raise Unauthenticated("the Authorization header is not ASCII")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip(), None
    if scheme.lower() == "basic":
        try:
            user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise Unauthenticated("the Authorization header is not valid Basic") from None
        if colon:
            return password, user
    raise Unauthenticated("the Authorization header is neither Bearer nor Basic")


def authorization(
    authenticator: Authenticator, trail: Trail | None = None, told: Told | None = None
) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
    """The middleware that compares who asks with what the route needs. Failed logins are slowed down, and `told`.

    What changes anything is recorded on `trail` (`faas.audited`), refusals too.
    """
    attempts = Attempts(told=told)

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        principal = ANONYMOUS
        if (given := credentials(request)) is not None:
            principal = await attempts.admit(authenticator, *given, client_address(request), hint=LOGIN_HINT)
        request[PRINCIPAL] = principal
        if request.match_info.http_exception is not None:
            if principal is ANONYMOUS:
                raise Unauthenticated("credentials are needed here", hint="set FAAS_TOKEN or run faas login")
            return await handler(request)
        permission = needed(request.match_info.handler)

        async def answered() -> web.StreamResponse:
            require(principal, permission)
            return await handler(request)

        if trail is None or principal is ANONYMOUS or not changes(request.method, permission):
            return await answered()
        trail.check()  # what cannot be recorded is not begun, nor is that recorded
        request[DRAFT] = Draft(trail, request, principal, request.get(REQUEST_ID, ""))
        return await recorded(request[DRAFT], answered)

    return check


def doubt_about(request: web.Request) -> str:
    """What of a request's head could be read in two ways, in words; "" where nothing could."""
    hosts = request.headers.getall(hdrs.HOST, ())
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if not request.raw_path.startswith("/"):
        return "the request's target must be a path"
    if len(hosts) != 1 and (hosts or request.version >= (1, 1)):
        return "the request must have one Host"
    if hosts and not _HOST.fullmatch(hosts[0]):
        return "the request's Host is none"
    if coding is not None and (request.version < (1, 1) or coding.strip().lower() != "chunked"):
        return "the only Transfer-Encoding taken is chunked, of HTTP/1.1"
    return ""


def require(
    principal: Principal, permission: Permission, namespace: str | None = None, function: str | None = None
) -> None:
    """Raise Unauthenticated or Forbidden unless `principal` holds `permission` there."""
    if principal.may(permission, namespace, function):
        return
    if principal is ANONYMOUS:
        raise Unauthenticated("credentials are needed here", hint="set FAAS_TOKEN or run faas login")
    where = f" in {namespace}" if namespace else ""
    who = principal.name if principal.grants is not None else f"the role {principal.role.value}"
    what = "administer" if permission is Permission.ADMIN else permission.value
    raise Forbidden(f"{who} may not {what}{where}", hint="faas whoami says what you may")


async def json_body(request: web.Request, limit: int = 1_048_576) -> dict[str, Any]:
    """A request's JSON object. Raises InvalidInput, or PayloadTooLarge past `limit` bytes."""
    return json_object(await read_body(request, limit) or b"{}")


def json_object(raw: bytes, hint: str = "") -> dict[str, Any]:
    """A body's JSON object. Raises InvalidInput, with `hint` where it is no JSON."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidInput("the body is not valid JSON", hint=hint) from None
    if not isinstance(value, dict):
        raise InvalidInput("the body must be a JSON object")
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON (RFC 8259, 8.2), but no text that a database or a header takes
            raise InvalidInput("the body has half of a surrogate pair in a text") from None
    return value


async def read_body(request: web.Request, limit: int) -> bytes:
    """A request's whole body; see `held_body`, whose count of its bytes ends here with the reading."""
    async with held_body(request, limit) as body:
        return body


@asynccontextmanager
async def held_body(
    request: web.Request, limit: int, wanted: Callable[[web.Request], Awaitable[None]] | None = None
) -> AsyncIterator[bytes]:
    """A request's whole body, whose bytes count on `BODIES` until the block ends.

    Refused by its length before it is read, or when it crosses `limit`; `wanted` is called in between (to answer
    `Expect`). Raises PayloadTooLarge, Unavailable where the budget is used up, RequestTimeout where it comes too
    slowly, InvalidInput where its framing is broken.
    """
    if not request.body_exists:
        yield b""
        return
    if (own := request.get(BODY_LIMIT)) is not None:
        limit = min(limit, own.size)
    announced = request.content_length or 0
    if announced > limit:
        raise PayloadTooLarge(f"the body has {announced} bytes; at most {limit} are taken")
    BODIES.check(announced)
    if wanted is not None:
        await wanted(request)
    with BODIES.share() as share:
        yield await _whole(request, limit, share)


async def _whole(request: web.Request, limit: int, share: Share) -> bytes:
    """Read to the end: every `PACE_BYTES` within `PROGRESS_SECONDS`, all of it within `BODY_SECONDS`."""
    clock = asyncio.get_running_loop().time
    end = clock() + BODY_SECONDS
    chunks, paced = [], 0
    try:
        async with asyncio.timeout(PROGRESS_SECONDS) as deadline:
            while chunk := await request.content.readany():
                if share.size + len(chunk) > limit:
                    raise PayloadTooLarge(f"the body has more than {limit} bytes")
                share.take(len(chunk))
                chunks.append(chunk)
                if share.size - paced >= PACE_BYTES:
                    paced = share.size
                    deadline.reschedule(min(clock() + PROGRESS_SECONDS, end))
    except TimeoutError:
        raise RequestTimeout(f"the body comes too slowly: {PACE_BYTES} bytes in {PROGRESS_SECONDS:g} s") from None
    except web.RequestPayloadError:
        raise InvalidInput("the body is not framed as its head says") from None
    return b"".join(chunks)


async def read_chunk(request: web.Request) -> bytes:
    """The next bytes of a request's body, empty at its end. Raises RequestTimeout, InvalidInput, PayloadTooLarge."""
    try:
        async with asyncio.timeout(PROGRESS_SECONDS):
            chunk = await request.content.readany()
    except TimeoutError:
        raise RequestTimeout(f"no byte of the body came for {PROGRESS_SECONDS:g} s") from None
    except web.RequestPayloadError:
        raise InvalidInput("the body is not framed as its head says") from None
    if (limit := request.get(BODY_LIMIT)) is not None:
        limit.count(len(chunk))
    return chunk
