"""A `Worker` without containers: instances are counters, functions are plain coroutines of the test.

It keeps the port's promises that callers lean on: nothing starts unless `scale` says so, slots are given first come
first served, busy instances finish before they go, a wait that is over raises Throttled.
"""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType

from faas.errors import FunctionError, InitFailed, NotOffered, SpecError, Throttled
from faas.leases import (
    Claim,
    ColdStart,
    HttpRequest,
    HttpResponse,
    Invocation,
    InvocationResult,
    Report,
    StreamedResult,
)
from faas.protocol import (
    CheckReport,
    Door,
    Ended,
    Health,
    InstanceStatus,
    Kind,
    LogQuery,
    LogRecord,
    Revision,
    RevisionKey,
    RevisionStats,
    RevisionUsage,
    Running,
    WorkerUsage,
)
from faas.secret import Reveal
from faas.spec import Interface
from tests.support.fake_claim import FakeClaim

MB = 1_048_576
OnInvoke = Callable[[Revision, bytes], Awaitable[InvocationResult]]
OnRequest = Callable[[Revision, HttpRequest], Awaitable[HttpResponse]]
OnStream = Callable[[Revision, bytes], Awaitable[StreamedResult]]
OnRun = Callable[[Revision, bool], AbstractAsyncContextManager[Running]]


async def echo(revision: Revision, event: bytes) -> InvocationResult:
    """The event is the answer."""
    return InvocationResult(event)


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def body_size(request: HttpRequest) -> int:
    """Bytes of the request's body, which is read."""
    if request.body is None or isinstance(request.body, bytes):
        return len(request.body or b"")
    return sum([len(piece) async for piece in request.body])


async def ok(revision: Revision, request: HttpRequest) -> HttpResponse:
    """200 with the request's target as body."""
    body = request.target.encode()
    return HttpResponse(200, (("Content-Type", "text/plain"), ("Content-Length", str(len(body)))), stream(body))


@dataclass
class _Slots:
    """One revision's instances, each with `concurrency` slots."""

    desired: int = 0
    starting: int = 0
    ready: int = 0
    executing: int = 0
    waiters: deque[asyncio.Future[None]] = field(default_factory=deque)


class FakeWorker:
    """Set `on_invoke` / `on_request` for what functions do; `start_seconds` for how long an instance starts;
    `fails` to a text for instances that never become ready; `found` for what `check` finds out;
    `claims` to False for one that has no slot at once."""

    def __init__(
        self, on_invoke: OnInvoke = echo, on_request: OnRequest = ok, *, start_seconds: float = 0.0, fails: str = ""
    ) -> None:
        self.on_invoke = on_invoke
        self.on_request = on_request
        self.on_stream: OnStream | None = None  # for Lambda functions that stream
        self.on_run: OnRun | None = None  # for jobs
        self.healths: dict[RevisionKey, Health] = {}
        self.start_seconds = start_seconds
        self.fails = fails
        self.found = Interface.LAMBDA
        self.prepared: list[RevisionKey] = []
        self.held: set[str] | None = None
        self.checked: list[RevisionKey] = []
        self.scaled: list[tuple[RevisionKey, int]] = []
        self.retired: list[RevisionKey] = []
        self.reserved: dict[tuple[str, str], int] = {}
        self.reservable = 10_000 * MB
        self.forgotten: list[tuple[str, str]] = []
        self.reveal: Reveal | None = None
        self.renewed: list[tuple[RevisionKey, bool]] = []
        self.records: list[LogRecord] = []
        self.invocations: list[Invocation] = []
        self.looks = 0  # at the usage
        self.claims = True
        self.claimed = 0
        self.ended: Ended = lambda key, reports: None
        self._slots: dict[RevisionKey, _Slots] = {}

    # The port

    async def prepare(self, revision: Revision) -> None:
        self.prepared.append(revision.key)

    async def collect(self, held: Collection[str]) -> int:
        self.held = set(held)
        return 0

    async def check(self, revision: Revision) -> CheckReport:
        self.checked.append(revision.key)
        await asyncio.sleep(self.start_seconds)
        if self.fails:
            raise InitFailed(self.fails, log_tail=self.fails)
        slots = self._of(revision.key)
        slots.ready = max(slots.ready, 1)
        slots.desired = max(slots.desired, 1)
        found = self.found if revision.spec.interface is Interface.AUTO else revision.spec.interface
        return CheckReport(found, self.start_seconds)

    def acquire(self, revision: Revision, invocation: Invocation) -> FakeLease:
        self.invocations.append(invocation)
        return FakeLease(self, revision, invocation)

    def door(self, revision: Revision) -> Door:
        return functools.partial(self._claim, revision)

    def _claim(self, revision: Revision, request_id: str) -> Claim | None:
        slots = self._of(revision.key)
        free = not slots.waiters and slots.executing < slots.ready * revision.spec.concurrency
        if not free or not self.claims:
            return None
        slots.executing += 1
        self.claimed += 1
        return FakeClaim(self, revision)

    async def scale(self, revision: Revision, desired: int) -> None:
        self.scaled.append((revision.key, desired))
        slots = self._of(revision.key)
        slots.desired = desired
        missing = desired - slots.ready - slots.starting
        for _ in range(missing):
            slots.starting += 1
            asyncio.get_running_loop().call_later(self.start_seconds, self._started, revision, slots)
        self._shrink(revision, slots)

    def reserve(self, namespace: str, function: str, memory_bytes: int) -> None:
        after = {**self.reserved, (namespace, function): memory_bytes}
        if memory_bytes and sum(after.values()) > self.reservable:
            raise SpecError("the fake worker has too little memory", key="scale.reserved")
        self.reserved = {where: size for where, size in after.items() if size}

    async def retire(self, key: RevisionKey) -> None:
        self.retired.append(key)
        if (slots := self._slots.get(key)) is not None:
            slots.desired = 0
            slots.ready = min(slots.ready, slots.executing)

    def reveal_with(self, reveal: Reveal) -> None:
        self.reveal = reveal

    async def renew(self, revision: Revision, *, running: bool) -> int:
        self.renewed.append((revision.key, running))
        if running and self.fails:
            raise InitFailed(self.fails, log_tail=self.fails)
        return self._of(revision.key).ready if running else 0

    def report_to(self, ended: Ended) -> None:
        self.ended = ended

    def settle(self) -> None:
        """Nothing is put off."""

    def stats(self, key: RevisionKey) -> RevisionStats:
        slots = self._slots.get(key)
        if slots is None:
            return RevisionStats()
        busy = min(slots.executing, slots.ready)
        return RevisionStats(slots.starting, slots.ready - busy, busy, slots.executing, len(slots.waiters))

    async def usage(self) -> WorkerUsage:
        """Each instance is charged 128 MB and uses 10."""
        self.looks += 1
        revisions = tuple(
            RevisionUsage(key, stats, stats.instances * 10 * MB, stats.instances * 128 * MB, 0.25)
            for key in self._slots
            if (stats := self.stats(key)).instances
        )
        charged = {**dict.fromkeys(Kind, 0), Kind.INVOKED: sum(one.charged_bytes for one in revisions)}
        return WorkerUsage(time.time(), 1024 * MB, charged, 0, 3, revisions)

    @asynccontextmanager
    async def run(
        self, revision: Revision, kind: Kind, *, wait_seconds: float, terminal: bool = False
    ) -> AsyncIterator[Running]:
        if self.on_run is None:
            raise NotOffered("the gateway runs no jobs yet")
        async with self.on_run(revision, terminal) as running:
            yield running

    def health(self, key: RevisionKey) -> Health:
        return self.healths.get(key, Health())

    def instances(self, key: RevisionKey) -> list[InstanceStatus]:
        stats = self.stats(key)
        states = ["starting"] * stats.starting + ["idle"] * stats.idle + ["busy"] * stats.busy
        return [InstanceStatus(f"i{n}", state, 0.0, 0.0, 0, 0) for n, state in enumerate(states)]

    async def logs(self, query: LogQuery) -> AsyncIterator[LogRecord]:
        for record in self.records:
            asked = ((query.request_id, record.request_id), (query.stream, record.stream))
            begins = record.instance.startswith(query.instance) and record.time < (query.until or math.inf)
            if begins and query.contains in record.message and all(wanted in ("", has) for wanted, has in asked):
                yield record

    def forget_logs(self, namespace: str, function: str) -> None:
        self.forgotten.append((namespace, function))

    # Inside

    def _of(self, key: RevisionKey) -> _Slots:
        return self._slots.setdefault(key, _Slots())

    def _started(self, revision: Revision, slots: _Slots) -> None:
        slots.starting -= 1
        if self.fails:
            while slots.waiters:
                waiter = slots.waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(InitFailed(self.fails))
            return
        slots.ready += 1
        self._hand_out(revision, slots)
        self._shrink(revision, slots)

    def _hand_out(self, revision: Revision, slots: _Slots) -> None:
        while slots.waiters and slots.executing < slots.ready * revision.spec.concurrency:
            waiter = slots.waiters.popleft()
            if not waiter.done():
                slots.executing += 1
                waiter.set_result(None)

    def _shrink(self, revision: Revision, slots: _Slots) -> None:
        needed = -(-slots.executing // revision.spec.concurrency)
        slots.ready = max(min(slots.ready, slots.desired), needed)

    async def _take(self, revision: Revision, wait_seconds: float) -> None:
        slots = self._of(revision.key)
        if not slots.waiters and slots.executing < slots.ready * revision.spec.concurrency:
            slots.executing += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slots.waiters.append(waiter)
        wait = wait_seconds + (revision.spec.init_timeout if slots.starting else 0)
        try:
            async with asyncio.timeout(wait):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(revision)  # it came together with the end of the wait
            elif waiter in slots.waiters:
                slots.waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise Throttled(f"no instance was free within {wait_seconds:g} s") from None
            raise

    def _give_back(self, revision: Revision) -> None:
        slots = self._of(revision.key)
        slots.executing -= 1
        self._hand_out(revision, slots)
        self._shrink(revision, slots)


class FakeLease:
    """Its own context manager, as cheap as can be."""

    def __init__(self, worker: FakeWorker, revision: Revision, invocation: Invocation) -> None:
        self._worker = worker
        self._revision = revision
        self._wait = invocation.wait_seconds
        self._duration = 0.0
        self.instance_id = "i0"
        self.interface = revision.interface
        self.cold_start: ColdStart | None = None
        self.queue_seconds = 0.0
        self.report: Report | None = None

    async def __aenter__(self) -> FakeLease:
        began = asyncio.get_running_loop().time()
        await self._worker._take(self._revision, self._wait)
        self.queue_seconds = asyncio.get_running_loop().time() - began
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker._give_back(self._revision)
        memory = self._revision.spec.memory_bytes
        failed = isinstance(error, FunctionError)
        self.report = Report(self._duration, self._duration, memory, memory // 2, failed=failed)
        self._worker.ended(self._revision.key, (self.report,))

    async def invoke_streaming(self, event: bytes) -> InvocationResult | StreamedResult:
        if self._worker.on_stream is None:
            return await self.invoke(event)
        return await self._worker.on_stream(self._revision, event)

    async def invoke(self, event: bytes) -> InvocationResult:
        began = asyncio.get_running_loop().time()
        try:
            return await self._worker.on_invoke(self._revision, event)
        finally:
            self._duration = asyncio.get_running_loop().time() - began

    async def request(self, request: HttpRequest) -> HttpResponse:
        return await self._worker.on_request(self._revision, request)
