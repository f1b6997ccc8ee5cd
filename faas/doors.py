"""`Doors`: listening sockets with applications behind them, opened, bounded, and closed in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Collection, Mapping, Sized
from functools import partial
from types import MappingProxyType
from typing import Protocol, cast

from aiohttp import web

from faas.acceptor import Acceptor, Arrived
from faas.crowd import Crowd, Gate
from faas.listener import BACKLOG, end
from faas.proxies import NO_PROXIES, TrustedProxies
from faas.runner import Runner
from faas.tls import HANDSHAKE_SECONDS
from faas.web import REQUEST_ID_HEADER, RUNNER_OPTIONS, SERVER, new_request_id

log = logging.getLogger("faas.web")

CONNECTIONS_SHARE = 0.2  # of our descriptors, for each listener: instances and files need the rest
LEAST_CONNECTIONS = 64
PLAIN = ("private", "redirect")
SETTLE_SECONDS = 0.1  # in which who has just connected sends a request
LAST_CALL_SECONDS = 1.0  # in which clients that keep a connection and use it hear that they need another one
TELL_SECONDS = 1.0  # between two lines of the log about connections too many
CUT_SECONDS = 0.5  # after that: for handlers to notice that they are cancelled


def raise_file_limit() -> None:
    """An instance costs about eight descriptors; the soft limit's usual 1,024 would be reached at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections() -> int:
    """So many a listener of this process serves."""
    return max(LEAST_CONNECTIONS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * CONNECTIONS_SHARE))


class Front(Protocol):
    """A listener's own way for connections, in front of its application's server; it hands over what it does not take.

    `gateway.lane` has the one of the public listener.
    """

    @property
    def connections(self) -> Sized:
        """Those that it has not handed over."""
        ...

    def open(self, behind: web.Server) -> None:
        """Once, before the first connection."""
        ...

    def accept(self) -> asyncio.Protocol:
        """For a new connection."""
        ...

    def last_call(self) -> None:
        """The next answer on each connection says that it is the last one."""
        ...

    def refuse(self) -> None:
        """No request from here on but those that have begun."""
        ...

    def close(self) -> None:
        """Tell those who wait for an answer, and cut what is still connected."""
        ...


NO_FRONTS: Mapping[str, Front] = MappingProxyType({})


class Doors:
    """The HTTP side of all listeners. `private` is the registry's second one, plain, for this process itself.

    Each listener serves a share of the process's descriptors, and of it `per_address` connections of one client; who
    comes beyond that hears 503 at once. `fronts` stand before the applications of the same names. `shared`: listeners
    without TLS that other processes have too.
    """

    def __init__(
        self,
        apps: Mapping[str, web.Application],
        tls: ssl.SSLContext | None,
        fronts: Mapping[str, Front] = NO_FRONTS,
        *,
        per_address: int | Mapping[str, int] = 0,
        proxies: TrustedProxies = NO_PROXIES,
        shared: Collection[str] = (),
    ) -> None:
        self._runners = {
            name: Runner(app, shutdown_timeout=CUT_SECONDS, **RUNNER_OPTIONS) for name, app in apps.items()
        }
        self._tls = tls
        self._fronts = fronts
        each = per_address if isinstance(per_address, Mapping) else dict.fromkeys(apps, per_address)
        self._crowds = {name: Crowd(each[name], proxies) for name in apps}
        self._shared = shared
        self._ways: dict[str, Callable[[], asyncio.Protocol]] = {}
        self._overflow = Overflow()
        self._listening: list[asyncio.Server | Acceptor] = []
        self._sockets: list[tuple[socket.socket, Callable[[], asyncio.Protocol], ssl.SSLContext | None]] = []
        self._most = most_connections()

    async def open(self, sockets: Mapping[str, socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for runner in self._runners.values():
            await runner.setup()
        for name, listener in sockets.items():
            server = self._runners["registry" if name == "private" else name].server
            assert server is not None
            front = self._fronts.get(name)
            if front is not None:
                front.open(server)
            accept = self._ways[name] = partial(self._accept, server, front, self._crowds.get(name))
            tls = None if name in PLAIN else self._tls
            self._sockets.append((listener, accept, tls))
            if name in self._shared:
                self._listening.append(Acceptor(listener, accept))
                continue
            self._listening.append(
                await loop.create_server(
                    accept,
                    sock=listener,
                    ssl=tls,
                    backlog=BACKLOG,
                    ssl_handshake_timeout=HANDSHAKE_SECONDS if tls is not None else None,
                )
            )

    def _accept(self, server: web.Server, front: Front | None, crowd: Crowd | None) -> asyncio.Protocol:
        taken = len(server.connections) + (len(front.connections) if front is not None else 0)
        if taken >= self._most:
            return self._overflow.full()
        then = server if front is None else front.accept
        return then() if crowd is None else Gate(crowd, then, self._overflow.full)

    async def adopt(self, name: str, connection: socket.socket, data: bytes) -> None:
        """Serve a connection that another process has accepted on this listener, and read `data` of."""
        await self._serve(connection, partial(Arrived, self._ways[name], data), None)

    async def refuse(self, *, hand_over: bool = False) -> None:
        """No new connection from here on. Those that are open get the answer that is on its way, and end.

        Whoever connected before sees no reset: its request has a moment to come in. `hand_over`: the sockets go on
        listening, for another process that has them too; who waits in their queues is its client. Then clients hear in
        an answer that their connection ends: who sends a request just as an idle one is closed would lose it.
        """
        if hand_over:
            for front in self._fronts.values():
                front.last_call()
            for runner in self._runners.values():
                runner.last_call()
        ended = [] if hand_over else self._sockets
        last = [(queued, accept, tls) for listener, accept, tls in ended for queued in end(listener)]
        for listening in self._listening:
            listening.close()
        self._sockets.clear()
        serving = [asyncio.create_task(self._serve(*one)) for one in last]
        await asyncio.sleep(LAST_CALL_SECONDS if hand_over else SETTLE_SECONDS)
        for task in serving:
            task.cancel()  # a handshake that has not ended
        for front in self._fronts.values():
            front.refuse()
        for runner in self._runners.values():
            if runner.server is not None:
                runner.server.pre_shutdown()

    @staticmethod
    async def _serve(
        connection: socket.socket, accept: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                accept, connection, ssl=tls, ssl_handshake_timeout=HANDSHAKE_SECONDS if tls is not None else None
            )
        except OSError:
            connection.close()  # its client has gone, or speaks no TLS

    async def finish(self, name: str, seconds: float) -> None:
        """Wait for the requests to this listener that are on their way, so many seconds at most; connections that only
        wait for their next one are closed at once."""
        server = self._runners[name].server
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if server is not None:
                    await server.shutdown(None)

    async def close(self) -> None:
        """Cut what is still connected."""
        self._overflow.tell()
        for crowd in self._crowds.values():
            crowd.close()
        for front in self._fronts.values():
            front.close()
        await asyncio.gather(*(runner.cleanup() for runner in self._runners.values()))


class Overflow:
    """Refuses connections; the log has a line a second of it, with the last one's request id."""

    def __init__(self) -> None:
        self._count = 0
        self._request_id = ""
        self._timer: asyncio.TimerHandle | None = None

    def full(self) -> Full:
        return Full(self._refused)

    def _refused(self, request_id: str) -> None:
        self._count += 1
        self._request_id = request_id
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_SECONDS, self.tell)

    def tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._count:
            told = {"request_id": self._request_id}
            log.warning("%d connections too many heard 503, the last with this id", self._count, extra=told)
        self._count = 0


class Full(asyncio.Protocol):
    """A connection too many."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        self._refused = refused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.WriteTransport", transport)
        request_id = new_request_id()
        head = f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n{REQUEST_ID_HEADER}: {request_id}\r\n"
        transport.write(f"{head}Server: {SERVER}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        transport.close()
        self._refused(request_id)
