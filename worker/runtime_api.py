"""The Runtime API (2018-06-01) of one instance, served on 127.0.0.1:9001 inside its sandbox.

    GET  /2018-06-01/runtime/invocation/next            blocks; the event with Lambda-Runtime-* headers
    POST /2018-06-01/runtime/invocation/{id}/response   202
    POST /2018-06-01/runtime/invocation/{id}/error      202
    POST /2018-06-01/runtime/init/error                 202
    …    /@connections/{id}                             see `worker.push_door`

Whoever connects is hostile: every size and count is bounded, and only this instance's open event can be answered. A
body is kept only of such an answer and of a message to a client; any other one is refused before it is read.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from typing import Any

from faas.connections import Wanted
from faas.errors import FaasError, InitFailed, ResponseTooLarge
from faas.leases import Invocation, InvocationResult
from faas.trace_id import new_trace_id
from worker.answer_stream import AnswerStream
from worker.exchange import DELIVERIES, ENDED, HANDED, OFFERED, Exchange
from worker.push_door import METHODS, NO_DOOR, PushDoor
from worker.runtime_connection import PAYLOAD_BYTES, STREAMED_BYTES, RuntimeConnection
from worker.runtime_listener import RuntimeListener
from worker.runtime_requests import Known

CONNECTIONS = 16  # of one instance; a runtime needs one or two
PARKED = 8  # polls at once
KEPT_BYTES = 2 * PAYLOAD_BYTES  # of bodies, in all connections: an answer, and the one of a process that was replaced
PUSHED_BYTES = 2 * 1_048_576  # of messages to clients, beside those
KEPT_OPEN = CONNECTIONS // 2  # while more are inside, who sends a message goes then: a runtime finds a place
ERROR_BYTES = 262_144  # of an error's body: it is parsed on the loop
MESSAGE_CHARACTERS = 4096  # of an init error's own message
_result = tuple.__new__  # `InvocationResult` itself would call a function written in Python

NEXT = b"/2018-06-01/runtime/invocation/next"
INVOCATION = b"/2018-06-01/runtime/invocation/"
INIT_ERROR = b"/2018-06-01/runtime/init/error"
NOT_OFFERED = (
    b"/2020-01-01/extension/",
    b"/2020-08-15/logs",
    b"/2022-07-01/telemetry",
    b"/2021-04-23/credentials",
    b"/2018-06-01/runtime/restore/",
)


class RuntimeApi:
    """Hands events to one instance and takes its answers. `function_arn` and `limit_seconds` are the revision's;
    `door` is its instance's way to WebSocket clients.

    `first_poll` resolves with the first `next`; with InitFailed where the runtime reports an init error.
    """

    def __init__(self, function_arn: str, limit_seconds: int, door: PushDoor = NO_DOOR) -> None:
        self._door = door
        self._limit_ms = limit_seconds * 1000
        self._head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Lambda-Runtime-Invoked-Function-Arn: {function_arn.replace('%', '%%')}\r\n"
            "Lambda-Runtime-Aws-Request-Id: %s\r\nLambda-Runtime-Deadline-Ms: %d\r\n"
            "Lambda-Runtime-Trace-Id: %s%s\r\nContent-Length: %d\r\n\r\n"
        )
        self._listener: RuntimeListener | None = None
        self._connections: set[RuntimeConnection] = set()
        self._polls: dict[RuntimeConnection, None] = {}  # parked ones, oldest first
        self._open: Exchange | None = None
        self._taker: RuntimeConnection | None = None  # the connection that was given the open event, while it lives
        self._kept = 0  # bytes of bodies
        self._pushed = 0  # of messages
        self.first_poll: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def serve(self, listener: socket.socket) -> None:
        self._listener = RuntimeListener(listener, CONNECTIONS, lambda: RuntimeConnection(self))

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._connections):
            connection.abort()
        if not self.first_poll.done():
            self.first_poll.cancel()

    @property
    def is_asked(self) -> bool:
        """Whether somebody polls for the next event."""
        return bool(self._polls)

    def offer(self, exchange: Exchange) -> None:
        """Give this event out, now if somebody polls, else to the next poll."""
        assert self._open is None or self._open.state is ENDED, "one event at a time"
        self._open, self._taker = exchange, None
        if not self._polls or not self._give_out():
            exchange.wait_for_poll()

    def _give_out(self) -> bool:
        """Write the open event to a parked poll that is alive. A dead one is dropped, never given an event."""
        exchange = self._open
        if exchange is None or exchange.state is ENDED or exchange.deliveries >= DELIVERIES:
            return False
        while self._polls:
            connection = next(iter(self._polls))
            del self._polls[connection]
            if connection.is_alive():
                if len(self._connections) > 1:
                    self._cut_off_behind(connection)
                connection.useful = True
                exchange.handed()  # before the write: its START stands before whatever the function says
                connection.send(self._event_head(exchange.invocation, len(exchange.event)) + exchange.event)
                self._taker = connection
                return True
            connection.abort()
        return False

    def _cut_off_behind(self, taker: RuntimeConnection) -> None:
        """Who has not read an earlier event does not need it any more: only one at a time is kept for its reader."""
        for connection in list(self._connections):
            if connection.is_behind and connection is not taker:
                connection.abort()

    def _event_head(self, invocation: Invocation, size: int) -> bytes:
        request_id, _, _, trace_id, context = invocation
        more = f"\r\nLambda-Runtime-Client-Context: {_header_value(context)}" if context else ""
        if not trace_id.isprintable():
            trace_id = _header_value(trace_id)
        deadline = int(time.time() * 1000) + self._limit_ms
        return (self._head % (request_id, deadline, trace_id or new_trace_id(), more, size)).encode()

    # Called by connections

    def connected(self, connection: RuntimeConnection) -> bool:
        self._connections.add(connection)
        return self._listener is not None

    def disconnected(self, connection: RuntimeConnection) -> None:
        self._connections.discard(connection)
        self._polls.pop(connection, None)
        if self._listener is not None:
            self._listener.left(useful=connection.useful)
        if self._taker is connection:
            self._taker = None
            self._give_out()  # to a poll that waited beside it: the process was replaced

    def body_limit(self, connection: RuntimeConnection) -> int:
        if connection.method != b"POST":
            return 0
        if connection.path == INIT_ERROR:
            return 0 if self.first_poll.done() else ERROR_BYTES
        if (wanted := self._door.wanted(connection.path)) is not None:
            return self._door.limit(wanted)
        request_id, verb = _answer_of(connection.path)
        limits = {b"response": PAYLOAD_BYTES, b"error": ERROR_BYTES}
        return limits.get(verb, 0) if self._is_open(request_id) else 0

    def keep(self, connection: RuntimeConnection, size: int) -> bool:
        pushes = self._door.wanted(connection.path) is not None
        if (self._pushed + size > PUSHED_BYTES) if pushes else (self._kept + size > KEPT_BYTES):
            return False
        self._count(size, pushes)
        return True

    def release(self, connection: RuntimeConnection, size: int) -> None:
        if size:
            self._count(-size, self._door.wanted(connection.path) is not None)

    def _count(self, size: int, pushes: bool) -> None:
        if pushes:
            self._pushed += size
        else:
            self._kept += size

    def _is_open(self, request_id: bytes) -> bool:
        exchange = self._open
        return (
            exchange is not None and exchange.state is HANDED and exchange.invocation.request_id.encode() == request_id
        )

    def route(self, connection: RuntimeConnection) -> None:
        """Answer one request: a complete one, or one that is refused before its body."""
        path, method = connection.path, connection.method
        if path == NEXT:
            if method == b"GET" and not connection.has_body:
                self.poll(connection)
            else:
                connection.send_error(405, "MethodNotAllowed", "next takes GET, without a body")
        elif path.startswith(INVOCATION):
            self._answered(connection, *_answer_of(path))
        elif path == INIT_ERROR and method == b"POST":
            self._init_error(connection)
        elif (wanted := self._door.wanted(path)) is not None:
            self._push(connection, wanted)
        elif path.startswith(NOT_OFFERED):
            connection.send_error(501, "NotOffered", "extensions, telemetry and snapshots are not offered")
        else:
            connection.send_error(404, "NotFound", "404 page not found")

    def _push(self, connection: RuntimeConnection, wanted: Wanted) -> None:
        method = connection.method
        if method not in METHODS or (connection.has_body and method != b"POST"):
            connection.send_error(405, "MethodNotAllowed", "a connection takes POST; GET and DELETE without a body")
            return
        answer = self._door.answer(wanted, method, connection.body(), connection.size)
        connection.useful = connection.useful or not answer.error_type
        more = f"x-amzn-ErrorType: {answer.error_type}\r\n" if answer.error_type else ""
        connection.send_answer(answer.status, answer.body, more, close=len(self._connections) > KEPT_OPEN)

    def poll(self, connection: RuntimeConnection) -> None:
        if len(self._polls) >= PARKED:
            connection.send_error(429, "TooManyPolls", f"at most {PARKED} polls wait at once")
            return
        self._polls[connection] = None
        if not self.first_poll.done():
            self.first_poll.set_result(None)
        exchange = self._open
        if exchange is None or exchange.state is ENDED:
            return
        # An event that was given out is given again only when the one who took it cannot answer any more: its
        # connection is gone, or it polls itself.
        if exchange.state is OFFERED or self._taker in (None, connection):
            self._give_out()

    def _answered(self, connection: RuntimeConnection, request_id: bytes, verb: bytes) -> None:
        exchange = self._open
        if connection.method != b"POST" or verb not in (b"response", b"error"):
            connection.send_error(404, "NotFound", "404 page not found")
            return
        if exchange is None or not self._is_open(request_id):
            connection.send_error(400, "InvalidRequestID", "Invalid request ID")
            return
        if connection.oversized:
            limit = PAYLOAD_BYTES if connection.streamed is None else STREAMED_BYTES
            message = f"Exceeded maximum allowed payload size ({limit} bytes)."
            connection.send_error(413, "RequestEntityTooLarge", message)
            exchange.fail(too_large(connection.size, limit))
            return
        if connection.streamed is not None:
            self._streamed(connection, exchange)
            return
        connection.useful = True
        connection.send_accepted()
        if verb == b"response" and not connection.error_type:
            exchange.answer(InvocationResult(connection.body(), connection.content_type or "application/json"))
        else:
            payload, error_type = error_payload(connection.body(), connection.error_type, connection.size)
            exchange.answer(InvocationResult(payload, "application/json", error_type))

    def take(self, connection: RuntimeConnection, request: Known) -> bool:
        request_id, body, _ = request
        exchange = self._open
        if exchange is None or exchange.state is not HANDED or body is None:
            return False
        if exchange.invocation.request_id.encode() != request_id:
            return False
        connection.useful = True
        exchange.answer(_result(InvocationResult, (body, "application/json", None)))
        return True

    # Answers that stream

    def stream(self, connection: RuntimeConnection) -> AnswerStream | None:
        exchange = self._open
        request_id, verb = _answer_of(connection.path)
        if exchange is None or verb != b"response" or not self._is_open(request_id):
            return None
        return exchange.stream_from(connection, connection.content_type)

    def _streamed(self, connection: RuntimeConnection, exchange: Exchange) -> None:
        """It has come to its end."""
        connection.useful = True
        connection.send_accepted()
        if connection.error_type:
            exchange.answer(streamed_error(connection.error_type, connection.error_body))
        else:
            exchange.end_stream()

    def broke(self, connection: RuntimeConnection, error: FaasError) -> None:
        exchange = self._open
        if exchange is not None and self._is_open(_answer_of(connection.path)[0]):
            exchange.fail(error)

    def truncated(self, connection: RuntimeConnection) -> None:
        exchange = self._open
        if exchange is not None and self._is_open(_answer_of(connection.path)[0]):
            exchange.break_off()

    def _init_error(self, connection: RuntimeConnection) -> None:
        if self.first_poll.done():
            connection.send_error(403, "InvalidStateTransition", "init is over")
            return
        connection.send_accepted()
        payload, error_type = error_payload(connection.body(), connection.error_type, connection.size)
        message = str(json.loads(payload)["errorMessage"] or "the runtime reported an init error")
        self.first_poll.set_exception(InitFailed(message[:MESSAGE_CHARACTERS], error_type=error_type))
        self.first_poll.exception()  # seen: a launch that has given up does not look


def too_large(size: int, limit: int) -> ResponseTooLarge:
    return ResponseTooLarge(
        f"Response payload size ({size} bytes) exceeded maximum allowed payload size ({limit} bytes)."
    )


def streamed_error(error_type: str, body: bytes) -> InvocationResult:
    """What a runtime says in the trailers of an answer that it could not bring to its end; `body` is base64."""
    try:
        decoded = base64.b64decode(body, validate=True)
    except ValueError:
        decoded = b""
    payload, error_type = error_payload(decoded or b"{}", error_type)
    return InvocationResult(payload, "application/json", error_type)


def error_payload(body: bytes, header: str, size: int = 0) -> tuple[bytes, str]:
    """(Lambda's JSON error object, its error type) from what a runtime posted; anything but an object is wrapped.

    `size`: of all that was posted, where `body` is its beginning. What is too large is cut, and no JSON any more.
    """
    size = max(size, len(body))
    value: Any
    if size > ERROR_BYTES:
        said = body[:MESSAGE_CHARACTERS].decode("utf-8", "replace")
        value = {"errorMessage": f"{said} … (cut: the error had {size} bytes, {ERROR_BYTES} are read)"}
    else:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = {"errorMessage": body[:MESSAGE_CHARACTERS].decode("utf-8", "replace")}
        if not isinstance(value, dict):
            value = {"errorMessage": json.dumps(value)}
    written = value.get("errorType")
    error_type = written if isinstance(written, str) and written else header or "Unhandled"
    value["errorType"] = error_type
    value.setdefault("errorMessage", "")
    printable = "".join(c for c in error_type if c.isascii() and c.isprintable())[:128]
    return json.dumps(value).encode(), printable or "Unhandled"


def _answer_of(path: bytes) -> tuple[bytes, bytes]:
    """(request id, verb) of `…/invocation/{id}/{verb}`; empty where it is no such path."""
    request_id, _, verb = path.removeprefix(INVOCATION).partition(b"/")
    return (request_id, verb) if path.startswith(INVOCATION) else (b"", b"")


def _header_value(text: str) -> str:
    """`text` as one header value: what could end the line is dropped."""
    return text if text.isprintable() else "".join(c for c in text if c.isprintable())
