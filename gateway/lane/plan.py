"""`Plan`: what a request with one certain head becomes, all but what differs from one such request to the next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from multidict import CIMultiDict

from faas.leases import HttpRequest
from faas.proxies import Client
from faas.spec import Interface
from gateway import event, trace
from gateway.counters import RouteCounters
from gateway.edge.entry import Target
from gateway.headers import told
from gateway.lane.head import Head
from gateway.lane.template import Template, mark
from gateway.place import Gate
from gateway.router import Route

ID, TIME, EPOCH, BASE64, TRACE, ADDRESS = range(6)  # values of the templates
ADDRESS_V4, ADDRESS_V6 = mark(ADDRESS), f"::{mark(ADDRESS)}"  # as addresses that are not known yet
_SAY_THERE_IS_NO_BODY = frozenset({"POST", "PUT", "PATCH"})
_NO_HEADERS: Mapping[str, str] = {}
_json_text = json.encoder.encode_basestring_ascii


@dataclass(frozen=True, slots=True)
class Told:
    """What functions are told of who asks by one Host: the same for all its requests. `address`: the client's."""

    fields: tuple[tuple[str, str], ...]
    address: str

    @property
    def known_address(self) -> str:
        """Empty where it is the connection's own."""
        return "" if self.address == ADDRESS_V4 else self.address

    @classmethod
    def of(cls, asks: Client, host: str) -> Told:
        """`asks` may have ADDRESS_V4 or ADDRESS_V6 for its address."""

        def marked(text: str) -> str:
            return text.replace(ADDRESS_V6, ADDRESS_V4)

        fields = tuple((name, marked(value)) for name, value in told(asks, host, mark(ID)))
        return cls(fields, marked(asks.address))


class Destination(NamedTuple):
    """What a function's name leads to, with what its calls need."""

    route: Route
    counters: RouteCounters
    gate: Gate


class Plan:
    """`sent`: the request of an http function as it goes over the wire, or a Lambda function's event, without the body.

    `body_headers`: those that say what an event's body is. `head`: the bytes that it was made of.
    """

    __slots__ = (
        "body_headers", "counters", "fields", "gate", "head", "is_event", "is_head", "is_usual", "keeps", "length",
        "method", "route", "sent", "target", "told", "trace", "trace_id", "version_1_1", "wait_seconds", "written",
    )  # fmt: skip

    def __init__(self, head: Head, target: Target, destination: Destination, told: Told) -> None:
        self.head = b""
        self.target = target
        self.written = head.target
        self.told = told
        self.route, self.counters, self.gate = destination
        route = self.route
        self.wait_seconds = route.revision.spec.queue_timeout
        self.method = head.method
        self.is_head = head.method == "HEAD"
        self.version_1_1 = head.is_1_1
        self.keeps = head.keeps
        self.is_usual = head.keeps and head.is_1_1 and not self.is_head
        self.length = head.length
        self.is_event = route.revision.interface is Interface.LAMBDA
        self.fields = (*head.fields, *self._traced(head), *told.fields)
        self.body_headers = _NO_HEADERS
        self.sent = Template(self._event(told.address) if self.is_event else self._request())

    def _traced(self, head: Head) -> list[tuple[str, str]]:
        """Sets `trace_id`, for the function's environment: of events always one, TRACE's value where none was sent."""
        self.trace_id = ""
        found = trace.read_fields(CIMultiDict(head.traces)) if head.traces else None
        self.trace = found.told if found is not None else ""
        if self.is_event:
            found = found or trace.Trace()
            self.trace_id = found.amazon
            found.amazon = found.amazon or mark(TRACE)
        return found.fields if found is not None else []

    def http_request(self, body: bytes, address: str, request_id: str) -> HttpRequest:
        """For the way through a lease."""
        fields = tuple(
            (name, value.replace(mark(ADDRESS), address).replace(mark(ID), request_id)) for name, value in self.fields
        )
        return HttpRequest(self.method, self.target.written, fields, body or None, len(body) if body else None)

    def _request(self) -> bytes:
        lines = [f"{self.method} {self.target.written} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self.fields if name != "content-length"]
        if self.length or self.method in _SAY_THERE_IS_NO_BODY:
            lines.append(f"content-length: {self.length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _event(self, address: str) -> bytes:
        made = event.http_event(
            method=self.method,
            path=self.target.path,
            query=self.target.query,
            fields=self.fields,
            body=b"",
            protocol=f"HTTP/1.{int(self.version_1_1)}",
            source_ip=address,
            request_id=mark(ID),
            function=self.route.label,
            account="anonymous",
            now=0.0,
        )
        if self.length:
            self.body_headers = made["headers"]
        made["requestContext"] |= {"time": mark(TIME), "timeEpoch": mark(EPOCH)}
        made["isBase64Encoded"] = mark(BASE64)
        encoded = event.encode(made)
        for number in (EPOCH, BASE64):  # a number and a boolean have no quotes
            encoded = encoded.replace(f'"{mark(number)}"'.encode(), mark(number).encode())
        return encoded

    def event(self, sent: Template, values: list[bytes], body: bytes) -> bytes:
        """The event of `sent`, this plan's or one that has an address, with `values`; BASE64's is "false" there."""
        if not body:
            return sent.filled(values)
        text, is_base64 = event.body_text(body, self.body_headers)
        if is_base64:
            values[BASE64] = b"true"
        return b'%b,"body":%b}' % (sent.filled(values)[:-1], _json_text(text).encode())
