"""`Connections`: every open connection of every WebSocket API, by its id; how many there may be; who does not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from faas.background import Background
from faas.errors import ShuttingDown, Throttled
from faas.metrics import Metrics
from faas.pace import Pace
from gateway.edge.websocket.api import WebSocketApi
from gateway.edge.websocket.frames import GOING_AWAY
from gateway.edge.websocket.session import Session
from gateway.shares import share_of

CONNECTIONS = 10_000  # of all APIs; a listener's share of the process's descriptors may be less
DISCONNECTS = 50  # of one API, invoked at once
PENDING_BYTES = 67_108_864  # sent to all clients and not taken by the kernel
LOOK_SECONDS = 1.0
SHUTDOWN = "the server is shutting down"

Key = tuple[str, str]


def _full(who: str) -> Throttled:
    return Throttled(f"{who}, and no more are taken", reason="TooManyConnections", retry_after=10)


@dataclass(slots=True)
class Hall:
    """One API's. `taken`: connections that are open, being let in, or whose end is being told."""

    taken: int = 0
    sessions: set[Session] = field(default_factory=set)
    ends: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DISCONNECTS))


class Connections:
    """`stop` ends all."""

    def __init__(self, metrics: Metrics, most: int = CONNECTIONS) -> None:
        self._metrics = metrics
        self._most = most
        self._sessions: dict[str, Session] = {}
        self._halls: dict[Key, Hall] = {}
        self._taken: Counter[str] = Counter()  # of all halls, by namespace
        self._stalled: dict[Session, Pace] = {}  # those whose clients had not taken everything at the last look
        self._pending = 0  # bytes, at the last look
        self._work = Background()
        self._looking: asyncio.Task[None] | None = None
        self.stopping = False

    def start(self) -> None:
        self._looking = asyncio.create_task(self._look(), name="websocket-readers")

    async def drain(self, seconds: float) -> None:
        """Close every connection with 1001 and have `$disconnect` told of each, `seconds` at most."""
        self.stopping = True
        for session in list(self._sessions.values()):
            session.close(GOING_AWAY, SHUTDOWN)
        await self._work.finish(seconds)

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._work.cancel()

    def get(self, connection_id: str) -> Session | None:
        return self._sessions.get(connection_id)

    def of(self, key: Key) -> list[Session]:
        """Oldest first."""
        hall = self._halls.get(key)
        return sorted(hall.sessions, key=lambda session: session.peer.connected_at) if hall else []

    def count(self, key: Key) -> int:
        hall = self._halls.get(key)
        return len(hall.sessions) if hall else 0

    @contextlib.contextmanager
    def place(self, api: WebSocketApi, *, alone: bool = True) -> Iterator[Place]:
        """A place for one more connection, free again at the block's end unless it was kept. `alone`: no other
        namespace has WebSocket APIs; else none gets more than half of what the others leave.

        Raises Throttled, ShuttingDown.
        """
        if self.stopping:
            raise ShuttingDown
        hall = self._halls.get(api.key) or Hall()
        if hall.taken >= api.connections:
            raise _full(f"the API {api.label} has {api.connections} connections")
        share = share_of(self._most, self._taken, api.namespace, alone=alone)
        if self._taken[api.namespace] >= share:
            raise _full(f"the namespace {api.namespace} has {share} of the server's {self._most} connections")
        self._halls[api.key] = hall
        hall.taken += 1
        self._taken[api.namespace] += 1
        place = Place(self, api.key, hall)
        try:
            yield place
        finally:
            if not place.is_kept:
                self._vacate(api.key, hall)

    def keep(self, key: Key, hall: Hall, work: Coroutine[Any, Any, None]) -> None:
        """The place stays taken until `work` has ended."""
        self._work.start(self._kept(key, hall, work), "websocket connection")

    def open(self, hall: Hall, session: Session) -> None:
        self._sessions[session.peer.connection_id] = session
        hall.sessions.add(session)
        self._count(session, 1)

    def remove(self, session: Session) -> None:
        """It is no connection any more; its place is free once its end has been told."""
        if self._sessions.pop(session.peer.connection_id, None) is not None:
            self._halls[session.key].sessions.discard(session)
            self._stalled.pop(session, None)
            self._count(session, -1)

    def wrote(self, session: Session) -> None:
        """Bytes are on their way to its client: from now on it is looked at whether they are taken."""
        if session not in self._stalled and session.peer.connection_id in self._sessions:
            self._stalled[session] = Pace(asyncio.get_running_loop().time(), session.taken)

    def check_room(self, size: int) -> None:
        """Raises Throttled where `size` more bytes to clients that do not read have no room."""
        if self._pending + size > PENDING_BYTES:
            raise Throttled("too many bytes wait for clients that do not read", reason="SlowConnections")

    async def _kept(self, key: Key, hall: Hall, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._vacate(key, hall)

    def _vacate(self, key: Key, hall: Hall) -> None:
        hall.taken -= 1
        self._taken[key[0]] -= 1
        if not self._taken[key[0]]:
            del self._taken[key[0]]
        if not hall.taken and self._halls.get(key) is hall:
            del self._halls[key]

    def _count(self, session: Session, change: int) -> None:
        self._metrics.websocket_api_connections.labels(session.peer.api_id).inc(change)

    async def _look(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            pending, now = 0, clock()
            for session, pace in list(self._stalled.items()):
                if not session.pending:
                    del self._stalled[session]
                    continue
                pending += session.pending
                if not pace.is_kept(now, session.taken):
                    session.cut("the client does not read")
            self._pending = pending


class Place:
    """Room for one connection."""

    __slots__ = ("_connections", "_hall", "_key", "is_kept")

    def __init__(self, connections: Connections, key: Key, hall: Hall) -> None:
        self._connections = connections
        self._key = key
        self._hall = hall
        self.is_kept = False

    def open(self, session: Session) -> None:
        """It is `session`'s, until its end has been told."""
        self._connections.open(self._hall, session)
        self.keep(self._attend(session))

    def keep(self, end: Coroutine[Any, Any, None]) -> None:
        """It stays taken until `end`, which may tell a connection's end, has ended."""
        self.is_kept = True
        self._connections.keep(self._key, self._hall, end)

    async def telling(self, end: Coroutine[Any, Any, None]) -> None:
        """So many at once: clients may all go together."""
        async with self._hall.ends:
            await end

    async def _attend(self, session: Session) -> None:
        try:
            await session.serve()
            await self.telling(session.tell_end())
        finally:
            session.close(GOING_AWAY, "")  # where we were cancelled
