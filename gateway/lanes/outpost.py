"""`Outpost`: the lane of a process that has nothing but what the main process lends it.

A request is served here where its name and host are known, and an instance of its function has a free slot here. Else
the main process is asked once, and what it cannot help with goes there: the connection itself, with the bytes that were
read of it, and it stays there. So whatever is not served here is served as by a server of one process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple, Protocol, cast

from faas.errors import FaasError, NotFound
from faas.metrics import Metrics
from faas.protocol import Revision, RevisionKey, Worker
from faas.proxies import TrustedProxies
from faas.spec import FunctionSpec, Interface, ScaleSpec
from gateway.data_path import DataPath
from gateway.discovery import Discovery
from gateway.edge.apis.arrivals import host_name
from gateway.edge.entry import Entry, Target, of_function
from gateway.edge.witness import NOBODY, Witness
from gateway.invoke import Invoker
from gateway.lane import head
from gateway.lane.connection import Connection
from gateway.lane.lane import Lane
from gateway.lane.plan import Plan
from gateway.lane.plans import Place, target_of
from gateway.lanes.tally import TellingCounters
from gateway.router import Route, parse_name
from gateway.scaler import Scaler

MOST_KNOWN = 1_024  # names, hosts, and pairs that the main process said no to
MOST_PARKED = 1_024
PARKED_BYTES = 65_536  # read of one that waits for an answer
ASK_SECONDS = 0.25  # a main process that is busy for longer takes the connection itself
NO_LIMIT = 1_000_000_000


class Wanted(NamedTuple):
    """Where a request goes: what the main process is asked about."""

    host: str
    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """What the main process tells of one: `handle` is what it calls the route, `limit` its most instances."""

    handle: int
    namespace: str
    name: str
    number: int
    qualifier: str
    concurrency: int
    limit: int
    timeout: int
    queue_timeout: int

    def revision(self) -> Revision:
        spec = FunctionSpec(
            self.name,
            interface=Interface.HTTP,
            public=True,
            concurrency=self.concurrency,
            timeout=self.timeout,
            queue_timeout=self.queue_timeout,
            scale=ScaleSpec(max=self.limit),
        )
        return Revision(RevisionKey(self.namespace, self.name, self.number), spec, "", Interface.HTTP)


class Slots(Protocol):
    """What is lent to this process, as the lane needs it."""

    def has_room(self, key: RevisionKey) -> bool: ...


class Main(Protocol):
    """The main process, as the lane needs it."""

    async def ask(self, wanted: Wanted) -> float:
        """Have the table and the slots filled; seconds for which asking again is of no use, 0 where it helped."""
        ...

    def take(self, descriptor: int, data: bytes) -> None:
        """The connection is the main process's, and so is the descriptor."""
        ...


class Idler:
    """The scaler of a process that scales nothing; the main process's hears of what is used with what is counted."""

    def used(self, revision: Revision) -> None: ...


class Table:
    """The functions that are known here, as the lane's `Way`; empty after each change in the main process."""

    def __init__(self, worker: Slots, soon: Callable[[], None]) -> None:
        self.hosts: set[str] = set()  # that are no API's
        self._routes: dict[str, Route] = {}  # by the name as written
        self.counters = TellingCounters(soon)
        metrics = Metrics("")
        given = cast("Worker", worker)  # of which the lane asks for doors alone
        path = DataPath.create(given, metrics, max_concurrency=NO_LIMIT)
        path.activator.scaler = cast("Scaler", Idler())
        invoker = Invoker(path.activator, self.counters, Discovery(given, path.router, None))
        self.path = DataPath(
            path.router, path.scaler, invoker, path.patterns, path.reservations, path.activator, path.canaries
        )

    @property
    def invoker(self) -> Invoker:
        return self.path.invoker

    @property
    def witness(self) -> Witness:
        return NOBODY

    def function(self, target: Target) -> Entry:
        if (route := self._routes.get(target.name)) is None:
            raise NotFound
        return of_function(route, target)

    def plain(self, entry: Entry) -> bool:
        return True  # else it would not be here

    def taken(self, host: str) -> bool:
        return host not in self.hosts

    def learn(self, wanted: Wanted, function: Function) -> None:
        """From here on requests like this one are for that function."""
        known = self._routes.get(wanted.name)
        if known is None or self.counters.handles.get(known) != function.handle:
            if len(self._routes) >= MOST_KNOWN:
                self.forget()
            if known is not None:
                self.path.router.changed()  # plans have the other one
            known = self._routes[wanted.name] = Route(function.revision(), function.qualifier)
            self.counters.handles[known] = function.handle
        if len(self.hosts) >= MOST_KNOWN:
            self.hosts.clear()
        self.hosts.add(host_name(wanted.host))

    def forget(self) -> None:
        """A name may lead elsewhere, and so may a host."""
        for route in self._routes.values():
            self.path.activator.collector.forget(route.revision.key)
        self._routes.clear()
        self.hosts.clear()
        self.path.router.changed()


class Client(Connection):
    """One whose requests may have to go elsewhere."""

    __slots__ = ()

    def _begin(self, plan: Plan, body: bytes) -> None:
        if cast("Outpost", self._lane).has_room(plan):
            super()._begin(plan, body)
        else:
            self._buffer[:0] = plan.head + body
            self._hand_over()


class Outpost(Lane):
    """`slots`: of instances that are lent to this process; `domain` as the main process's."""

    def __init__(self, table: Table, slots: Slots, main: Main, domain: str, proxies: TrustedProxies) -> None:
        super().__init__(table.path, Place(table, domain, table.taken), proxies=proxies)
        self._table = table
        self._slots = slots
        self._main = main
        self._domain = domain
        self._asking: dict[Wanted, asyncio.Task[float]] = {}
        self._in_vain: dict[Wanted, float] = {}  # until when nothing needs to be asked
        self._is_arriving = False  # what comes has been asked for already
        self.parked: set[Parked] = set()

    def begin(self) -> None:
        self._check()

    def accept(self) -> asyncio.Protocol:
        return Client(self)

    def has_room(self, plan: Plan) -> bool:
        return self._slots.has_room(plan.route.revision.key)

    def forget(self) -> None:
        """Something changed in the main process."""
        self._table.forget()
        self._in_vain.clear()
        self._asking.clear()

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        wanted = self._wanted(data)
        is_full = self._is_arriving or self._refuses or len(self.parked) >= MOST_PARKED
        if wanted is None or is_full or self._in_vain.get(wanted, 0.0) > monotonic():
            self.pass_on(transport, data)
        else:
            Parked(self, transport, data, wanted)

    def pass_on(self, transport: asyncio.Transport, data: bytes) -> None:
        """To the main process, which goes on with it."""
        Leaving(transport, data, self._main.take).go()

    def arrive(self, transport: asyncio.Transport, data: bytes) -> None:
        """It was asked for: once more."""
        client = Client(self)
        if self.is_last_call:
            client.last_call()
        transport.set_protocol(client)
        client.connection_made(transport)
        self._is_arriving = True
        try:
            client.data_received(data)
        finally:
            self._is_arriving = False

    async def ask(self, wanted: Wanted) -> bool:
        """Whether it was worth it. One question for all who ask at once."""
        asking = self._asking.get(wanted)
        if asking is None:
            asking = self._asking[wanted] = asyncio.get_running_loop().create_task(self._main.ask(wanted))
            asking.add_done_callback(lambda done: self._asked(wanted, done))
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return not await asyncio.shield(asking)
        except (TimeoutError, FaasError):
            return False

    def _asked(self, wanted: Wanted, done: asyncio.Task[float]) -> None:
        if self._asking.get(wanted) is not done:
            return  # something changed meanwhile
        del self._asking[wanted]
        if done.cancelled() or done.exception() is not None:
            return
        if seconds := done.result():
            if len(self._in_vain) >= MOST_KNOWN:
                self._in_vain.clear()
            self._in_vain[wanted] = monotonic() + seconds

    def _wanted(self, data: bytes) -> Wanted | None:
        """None for what is never served here."""
        end = data.find(b"\r\n\r\n", 0, head.MOST_BYTES)
        found = head.read(data[: end + 4]) if end > 0 else None
        target = target_of(found, self._domain) if found is not None else None
        if found is None or target is None or "" in parse_name(target.name)[:2]:
            return None
        return Wanted(found.host, target.name)


class Parked(asyncio.Protocol):
    """A client that waits for the main process's answer; nothing is lost of what it sends."""

    def __init__(self, lane: Outpost, transport: asyncio.Transport, data: bytes, wanted: Wanted) -> None:
        self._lane = lane
        self._transport = transport
        self._data = bytearray(data)
        self._is_gone = self._paused = False
        transport.set_protocol(self)
        lane.parked.add(self)
        asking = lane.kit.run(self._ask(wanted))
        asking.add_done_callback(lambda done: lane.parked.discard(self))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > PARKED_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """It ends with the client's side."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_gone = True

    async def _ask(self, wanted: Wanted) -> None:
        helped = await self._lane.ask(wanted)
        if self._is_gone:
            return
        if self._paused:
            self._transport.resume_reading()
        if helped:
            self._lane.arrive(self._transport, bytes(self._data))
        else:
            self._lane.pass_on(self._transport, bytes(self._data))


class Leaving(asyncio.Protocol):
    """A connection on its way to the main process, as soon as all that was written on it has gone out."""

    def __init__(self, transport: asyncio.Transport, data: bytes, take: Callable[[int, bytes], None]) -> None:
        self._transport = transport
        self._data = data
        self._take = take

    def go(self) -> None:
        transport = self._transport
        transport.set_protocol(self)
        if transport.is_closing():
            return
        transport.pause_reading()
        if transport.get_write_buffer_size():
            transport.set_write_buffer_limits(0)
            if transport.get_write_buffer_size():  # `resume_writing` is called when there is nothing left
                return
        self.resume_writing()

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None:
        transport, take = self._transport, self._take
        if transport.is_closing():
            return
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        transport.abort()  # this process's copy
        take(descriptor, self._data)


def told_function(told: Any) -> Function:
    """What `Desk` tells of one."""
    return Function(**told)
