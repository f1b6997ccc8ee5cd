"""`Shape`: the head of a function's answer as the client gets it, checked; kept by what the function said.

`gateway.headers` checks and chooses the fields, for this way and for the other one.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from multidict import CIMultiDict

from faas.errors import BadFunctionResponse
from faas.web import SERVER
from gateway.headers import content_length, outbound
from gateway.proxy import WHOLE_BYTES

Fields = Sequence[tuple[bytes, bytes]]
MOST_KEPT = 512
MOST_KEPT_BYTES = 2_048
_REASONS = {status.value: status.phrase for status in HTTPStatus}
NO_BODY = (204, 304)


def status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}"


class Shape:
    """`head`: line and fields, to the request id's value; `length`: of the body where it was declared. Sent without a
    body (`bodiless`), in one piece (`whole`), or as it comes; `is_usual`: in one piece, dated by us, and no error.
    `headers` have been checked."""

    __slots__ = ("bodiless", "handled", "has_date", "head", "is_usual", "length", "status", "whole")

    def __init__(self, status: int, headers: CIMultiDict[str], *, is_head: bool, length: int | None) -> None:
        self.status = status
        self.handled = status >= 500  # an error of the function's own
        self.length = length
        self.bodiless = is_head or status in NO_BODY
        self.whole = not self.bodiless and length is not None and length <= WHOLE_BYTES
        headers.setdefault("Server", SERVER)
        if not self.bodiless and length != 0:
            headers.setdefault("Content-Type", "application/octet-stream")
        if length is not None and status not in NO_BODY:
            headers["Content-Length"] = str(length)
        self.has_date = "Date" in headers
        self.is_usual = self.whole and not self.has_date and not self.handled
        lines = [status_line(status)]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.head = ("\r\n".join(lines) + "\r\nX-Request-Id: ").encode()


class Shapes:
    """Those seen lately: functions say the same again and again."""

    __slots__ = ("kept", "plain_json")

    def __init__(self) -> None:
        self.kept: dict[Any, Shape] = {}
        self.plain_json = Shape(200, CIMultiDict({"Content-Type": "application/json"}), is_head=False, length=None)

    def of(self, status: int, headers: Fields, is_head: bool) -> Shape:
        """Of an http function's answer. Raises BadFunctionResponse where its head is none."""
        key = (status, is_head, headers if type(headers) is tuple else tuple(headers))
        shape = self.kept.get(key)
        if shape is None:
            fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            shape = self.of_texts(status, fields, is_head)
            self._keep(key, shape)
        return shape

    def of_texts(self, status: int, headers: Sequence[tuple[str, str]], is_head: bool) -> Shape:
        if not 200 <= status <= 599:
            raise BadFunctionResponse("the function's answer has a status that is none")
        return Shape(status, outbound(headers), is_head=is_head, length=content_length(headers))

    def of_event(self, status: int, headers: CIMultiDict[str], is_head: bool) -> Shape:
        """Of a Lambda function's answer, checked; its length is not in the head."""
        key = (status, is_head, tuple(headers.items()))
        shape = self.kept.get(key)
        if shape is None:
            shape = Shape(status, headers, is_head=is_head, length=None)
            self._keep(key, shape)
        return shape

    def _keep(self, key: Any, shape: Shape) -> None:
        if len(shape.head) > MOST_KEPT_BYTES:
            return
        if len(self.kept) >= MOST_KEPT:
            self.kept.clear()
        self.kept[key] = shape
