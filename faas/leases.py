"""What one invocation is, between the gateway and the worker: the slot it has, what goes in, what comes out.

Part of the contract of `faas.protocol`: plain values, and ports that the worker implements.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from faas.spec import Interface


class Trigger(enum.StrEnum):
    """Where an invocation came from: the label `trigger` of `faas_invocations_total`."""

    HTTP = "http"
    API = "api"
    ASYNC = "async"
    SCHEDULE = "schedule"
    FOLDER = "folder"


class Invocation(NamedTuple):
    """One call, as the worker needs to know it.

    `wait_seconds`: the longest it may wait for a free instance (`queue_timeout`). An instance that is already
    starting for it is waited for beyond that, up to its `init_timeout`.
    """

    request_id: str
    trigger: Trigger
    wait_seconds: float
    trace_id: str = ""
    client_context: str = ""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Where a new instance's time went, in seconds; `path` is stem | precreated | cold."""

    path: str
    prepare: float
    create: float
    start: float
    init: float


class Report(NamedTuple):
    """What an ended invocation used: the REPORT line's figures. A tuple, since every invocation makes one.

    `billed_seconds` is the duration, with init where this was the instance's first invocation, rounded up to 1 ms.
    `max_memory_bytes` is anonymous + shared + kernel memory, not file cache; on out of memory it is the limit.
    `failed`: the line has a status, error or timeout.
    """

    duration_seconds: float
    billed_seconds: float
    memory_bytes: int
    max_memory_bytes: int
    init_seconds: float | None = None
    failed: bool = False


class InvocationResult(NamedTuple):
    """A Runtime API function's answer.

    `error_type` is None where it succeeded; else the function itself reported an error, and `payload` is Lambda's
    JSON error object. Everything worse (exit, out of memory, time limit) is raised as a `FunctionError`.
    """

    payload: bytes
    content_type: str = "application/json"
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class StreamedResult:
    """A Runtime API function's answer that comes piece by piece (its response mode is `streaming`).

    `prelude` is what came before AWS's eight NUL bytes (JSON: statusCode, headers, cookies), None where the answer has
    none. `body` must be read to its end or closed (`aclose`); it raises where the function breaks off: with the error
    that the function names in its trailers, or what `Lease.invoke` raises.
    """

    body: AsyncIterator[bytes]
    prelude: bytes | None = None
    content_type: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request for an http function: hop-by-hop headers already dropped, framing is the worker's.

    `target` is the origin form (`/path?query`). `body` is None for no body, bytes, or a stream.
    `upgrade` asks for a protocol switch (WebSocket); the answer's `tunnel` is then set on a 101.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | AsyncIterator[bytes] | None = None
    content_length: int | None = None
    upgrade: str = ""


class Tunnel(Protocol):
    """The raw bytes of an upgraded connection, both ways."""

    async def read(self) -> bytes:
        """Some bytes; empty at the end."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An http function's answer; `body` streams it and must be read to its end or closed (`aclose`)."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: AsyncIterator[bytes]
    tunnel: Tunnel | None = None


class Lease(Protocol):
    """One slot of one instance, for one invocation. Obtained from `Worker.acquire` and given back by its exit.

    Whatever goes wrong inside decides whether the instance goes back to the pool or is destroyed.
    """

    instance_id: str
    interface: Interface
    cold_start: ColdStart | None
    queue_seconds: float
    report: Report | None  # set once the lease has ended

    async def invoke(self, event: bytes) -> InvocationResult:
        """Hand `event` (JSON) to a Runtime API function and await its answer.

        Raises TimedOut, InstanceExited, OutOfMemory, ResponseTooLarge. The time limit runs from here.
        """
        ...

    async def invoke_streaming(self, event: bytes) -> InvocationResult | StreamedResult:
        """As `invoke`, for a caller that can pass pieces on: a StreamedResult where the function streams its answer
        (`invoke` collects such an answer, prelude and all). Raises what `invoke` raises until the answer begins.
        """
        ...

    async def request(self, request: HttpRequest) -> HttpResponse:
        """Send `request` to an http function's port; returns when the response's head is there.

        Raises TimedOut, InstanceExited, OutOfMemory, BadFunctionResponse; reading `body` may raise them too.
        """
        ...


class KnownHead:
    """The head of an http function's answer that has come before, byte for byte, and of an answer that is whole: the
    same object each time. `fields`, framing and hop-by-hop ones among them, are as they came, `length` the body's.

    `made` belongs to whoever takes answers: what it made of the head the first time. Nothing but the head may be in it.
    """

    __slots__ = ("fields", "length", "made", "status")

    def __init__(self, status: int, fields: tuple[tuple[bytes, bytes], ...], length: int) -> None:
        self.status = status
        self.fields = fields
        self.length = length
        self.made: Any = None


class Answering(Protocol):
    """Who takes an http function's answer (`Claim.send`): `whole`, or `head`, `data`… and `end`. Called on the loop:
    quick, raising nothing."""

    def whole(self, head: KnownHead, body: bytes, seconds: float) -> None:
        """All of it at once, to anything but a HEAD request; the last call. It took `seconds`: the report comes later,
        and the slot is given back when this returns."""
        ...

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The answer's head, fields as they came; hop-by-hop ones and framing among them."""
        ...

    def data(self, piece: bytes) -> None:
        """Some of its body, without framing."""
        ...

    def end(self, error: BaseException | None) -> None:
        """Over, the last call: whole where `error` is None. The slot has been given back and the report is set."""
        ...


class Claim(Protocol):
    """A slot that was free at once, for callers that neither wait nor make a task: the same promises as a `Lease`'s.

    Exactly one of `send` and `invoke` is called, once; the slot gives itself back when the invocation is over.
    """

    report: Report | None  # set once the invocation has ended, and `Answering.whole` was not called

    def send(self, method: str, request: bytes, answering: Answering) -> None:
        """Send `request`, head and whole body as they go over the wire (checked: nothing of it is looked at), to an
        http function's port. Errors come by `answering.end`, as `Lease.request` and its body raise them.
        """
        ...

    def invoke(
        self,
        event: bytes,
        ended: Callable[[InvocationResult | None, BaseException | None], None],
        streams: Callable[[StreamedResult], None] | None = None,
        trace_id: str = "",
    ) -> None:
        """Hand `event` to a Runtime API function; `ended` is called with its answer, or with what `Lease.invoke` would
        raise. `streams`, for a caller that can pass pieces on, is called first where the function streams its answer:
        its body must be read to its end or closed, and raises as `Lease.invoke_streaming`'s; `ended` follows when the
        function is done, with a result that is empty. `trace_id` is `Invocation`'s.
        """
        ...

    def pause(self) -> None:
        """Take no more of the answer from the function until `resume`: its client does not read."""
        ...

    def resume(self) -> None: ...

    def abandon(self) -> None:
        """The caller has gone. `Answering.end` and `ended` are not called any more; the slot is given back as a
        cancelled lease gives it back. May be called from within `Answering.head` and `data`."""
        ...
