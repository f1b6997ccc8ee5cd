"""`Answer`: one request's answer on its connection: a function's, in one write where it is small, or our error.

The connection is told once, by `answered`, that the answer is over and whether another request may follow.
"""

from __future__ import annotations

import json
from typing import Protocol

from faas.errors import BadFunctionResponse, FaasError, FunctionError
from faas.leases import InvocationResult
from faas.web import SERVER, error_body, error_headers, log_failure
from gateway import event
from gateway.edge.call import for_strangers, reported
from gateway.invoke import SYNC_PAYLOAD_BYTES
from gateway.lane.kit import Kit
from gateway.lane.plan import Plan
from gateway.lane.shape import NO_BODY, Shape, status_line
from gateway.lane.template import Template


class Client(Protocol):
    """The connection, as an answer sees it."""

    address: str
    stays: bool  # other requests may follow
    is_usual: bool  # so they may, and nobody watches

    def template(self, plan: Plan) -> Template:
        """`plan.sent` with this client's address."""
        ...

    def write(self, data: bytes) -> None: ...

    def write_last(self, data: bytes) -> None:
        """`write`, and `answered`, where the connection is usual and keeps."""
        ...

    async def drained(self) -> None:
        """Returns when the client has taken most of what was written."""
        ...

    def is_there(self, answer: object) -> bool:
        """Whether it still waits for this one."""
        ...

    def answered(self, keeps: bool) -> None:
        """The last call: the answer is over, and with it the connection where it does not keep."""
        ...

    def cut(self, gently: bool) -> None:
        """The last call: show that the answer is not whole."""
        ...


class Answer:
    """`begin`, `more`…, `finish`; or `result`; or `fail` at any time. All but the last may raise BadFunctionResponse,
    and then want `fail`."""

    # Defaults of the class: one is made for each request, and most of them stay as they are.
    shape: Shape | None = None
    _body: bytes | bytearray = b""
    size = 0  # of the body, as far as it was sent
    has_begun = False  # its head has gone out, before its end was known
    _keeps = False
    error_status = 0  # where it is not a function's answer

    def __init__(self, kit: Kit, client: Client, plan: Plan, body: bytes) -> None:
        """`body`: the request's."""
        self.kit = kit
        self._client = client
        self.plan = plan
        self.body = body
        self.id, self.request_id = kit.ids.next()

    def begin(self, shape: Shape) -> None:
        """The head of an http function's answer."""
        self.shape = shape
        if shape.bodiless or shape.whole:
            return
        self.has_begun = True
        framed = shape.length is not None
        self._keeps = self.plan.keeps and self._client.stays and (framed or self.plan.version_1_1)
        chunked = b"\r\nTransfer-Encoding: chunked" if not framed and self.plan.version_1_1 else b""
        self._client.write(self._head(shape, chunked, self._keeps))

    def more(self, piece: bytes) -> None:
        """Some of its body."""
        shape = self.shape
        assert shape is not None
        if shape.bodiless:
            return
        self.size += len(piece)
        if shape.length is not None and self.size > shape.length:
            raise BadFunctionResponse("the function's answer is not as long as it says")
        if shape.whole:
            if not self._body:
                self._body = piece
            else:
                self._body = bytearray(self._body) if type(self._body) is bytes else self._body
                self._body += piece
        elif shape.length is not None or not self.plan.version_1_1:
            self._client.write(piece)
        elif piece:
            self._client.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def check(self) -> None:
        """Whether all of it has come."""
        shape = self.shape
        if shape is None or (not shape.bodiless and shape.length not in (None, self.size)):
            raise BadFunctionResponse("the function's answer is not as long as it says")

    def write_whole(self, shape: Shape, body: bytes) -> None:
        """An answer that goes out in one piece."""
        client = self._client
        self.shape, self.size = shape, len(body)
        keeps = self.plan.keeps and client.stays
        client.write(self._head(shape, b"", keeps) + body)
        client.answered(keeps)

    def finish(self) -> None:
        """It is whole."""
        shape = self.shape
        assert shape is not None
        client = self._client
        if self.has_begun:
            if shape.length is None and self.plan.version_1_1:
                client.write(b"0\r\n\r\n")
            client.answered(self._keeps)
            return
        self.write_whole(shape, bytes(self._body))

    def answers_plainly(self, result: InvocationResult) -> bool:
        """A Lambda function's usual answer, in one write; whether that would do, and nothing went wrong."""
        payload, content_type, error_type = result
        client, size = self._client, len(payload)
        if error_type is not None or size > SYNC_PAYLOAD_BYTES or not event.is_plain_json(payload, content_type):
            return False
        if not (self.plan.is_usual and client.is_usual and client.is_there(self)):
            return False
        kit = self.kit
        answer = (kit.shapes.plain_json.head, self.id, size, kit.stamps.tail, payload)
        client.write_last(b"%b%b\r\nContent-Length: %d%b%b" % answer)
        return True

    def result(self, result: InvocationResult) -> None:
        """A Lambda function's answer, as a whole."""
        if result.error_type is not None:
            self.fail(reported(result))
            return
        status, headers, body = event.http_answer(result.payload, result.content_type)
        shape = self.shape = self.kit.shapes.of_event(status, headers, self.plan.is_head)
        length = b""
        if status not in NO_BODY and (body or not self.plan.is_head):
            length = b"\r\nContent-Length: %d" % len(body)
        keeps = self.plan.keeps and self._client.stays
        head = self._head(shape, length, keeps)
        self.size = 0 if shape.bodiless else len(body)
        self._client.write(head if shape.bodiless else head + body)
        self._client.answered(keeps)

    def fail(self, error: FaasError) -> None:
        """Answer with `error`; where the answer has begun, show that it ends too soon."""
        if self.has_begun:
            self._client.cut(self.plan.version_1_1)
            return
        log_failure(self.plan.method, self.plan.target.path, error, self.request_id)
        if isinstance(error, FunctionError):
            error = for_strangers(error)
        body = json.dumps(error_body(error, self.request_id)).encode()
        self.error_status, self.size = error.status, 0 if self.plan.is_head else len(body)
        lines = [status_line(error.status)]
        lines += [f"{name}: {value}" for name, value in error_headers(error).items()]
        lines += ["Content-Type: application/json; charset=utf-8", f"Content-Length: {len(body)}", f"Server: {SERVER}"]
        head = ("\r\n".join(lines) + "\r\nX-Request-Id: ").encode("latin-1", "replace") + self.id
        keeps = self.plan.keeps and self._client.stays
        self._client.write(self._tail(head, keeps, dated=False) + (b"" if self.plan.is_head else body))
        self._client.answered(keeps)

    def _head(self, shape: Shape, more: bytes, keeps: bool) -> bytes:
        stamps = self.kit.stamps.look()
        if keeps and self.plan.version_1_1 and not shape.has_date:
            return b"%b%b%b%b" % (shape.head, self.id, more, stamps.tail)
        return self._tail(shape.head + self.id + more, keeps, dated=shape.has_date)

    def _tail(self, head: bytes, keeps: bool, *, dated: bool) -> bytes:
        """`head` with what its end depends on: version, connection, date."""
        if not self.plan.version_1_1:
            head = b"HTTP/1.0" + head[8:]
        connection = b""
        if keeps != self.plan.version_1_1:
            connection = b"Connection: keep-alive\r\n" if keeps else b"Connection: close\r\n"
        return head + b"\r\n" + connection + (b"" if dated else self.kit.stamps.look().date) + b"\r\n"
