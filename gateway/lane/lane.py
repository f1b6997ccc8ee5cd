"""`Lane`: the public listener's connections, as long as their requests are plain; aiohttp's server is behind it.

Plain: by a function's own path or host, anybody may call it and nothing else is asked (`Passage.plain`), head and body
are of the forms that `gateway.lane.head` knows. Everything else, also what is no HTTP, is aiohttp's to answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from faas.proxies import TrustedProxies
from faas.runner import Connection as Handler
from faas.web import HEAD_SECONDS
from gateway.data_path import DataPath
from gateway.lane import head
from gateway.lane.connection import Connection, peer_address
from gateway.lane.kit import Kit
from gateway.lane.plans import Place, Plans

MOST_PROXIES = 64  # whose plans are kept
CHECK_SECONDS = 1.0


class Lane:
    """`faas.doors.FrontDoor`. `scheme` is what clients used: http or https."""

    def __init__(
        self,
        path: DataPath,
        place: Place,
        *,
        scheme: str = "http",
        proxies: TrustedProxies = TrustedProxies(),  # noqa: B008 - a frozen value
        idle_seconds: float = HEAD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place, self._scheme = place, scheme
        self.idle_seconds = idle_seconds
        self._behind: web.Server | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._refuses = self.is_last_call = False
        self.clock = clock
        witness = place.passage.witness
        self.kit = Kit(path.activator, path.invoker, witness if witness.watching else None)
        self.connections: set[Connection] = set()
        self._proxies = proxies
        self._plans = {v6: Plans(place, scheme, v6=v6) for v6 in (False, True)}
        self._plans_of_proxies: dict[str, Plans] = {}
        path.router.watch(self._forget)

    # For the door

    def open(self, behind: web.Server) -> None:
        self._behind = behind
        self._check()

    def accept(self) -> asyncio.Protocol:
        return Connection(self)

    def last_call(self) -> None:
        """The next answer on each connection says that it is the last one."""
        self.is_last_call = True
        for connection in self.connections:
            connection.last_call()

    def refuse(self) -> None:
        """Those that are open get the answer that is on its way, and end."""
        self._refuses = True
        for connection in list(self.connections):
            connection.refuse()

    def close(self) -> None:
        """Cut what is still connected, once it has been told, and end what still runs."""
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        for connection in list(self.connections):
            connection.close()
        for task in self.kit.tasks:
            task.cancel()

    def _check(self) -> None:
        now, stamps = self.clock(), self.kit.stamps.look()
        for connection in list(self.connections):
            connection.check(now, self.idle_seconds)
        second = 1.0 - stamps.now % 1.0  # what is left of it: its stamps go with it
        every = min(CHECK_SECONDS, self.idle_seconds / 4, second)
        self._checking = asyncio.get_running_loop().call_later(every, self._check)

    def _forget(self) -> None:
        for plans in (*self._plans.values(), *self._plans_of_proxies.values()):
            plans.forget()

    # For connections

    def plans(self, address: str) -> Plans:
        """For a client at this address."""
        if not self._proxies or not self._proxies.trusts(address):
            return self._plans[":" in address]
        plans = self._plans_of_proxies.get(address)
        if plans is None:
            plans = Plans(self._place, self._scheme, peer=address, proxies=self._proxies)
            if len(self._plans_of_proxies) < MOST_PROXIES:
                self._plans_of_proxies[address] = plans
        return plans

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """The connection is aiohttp's from here on, as if `data` had just come."""
        if self._behind is None or self._refuses:
            transport.close()
            return
        handler = self._behind()
        if isinstance(handler, Handler):
            handler.home = self
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(data)

    def wants(self, transport: asyncio.Transport, data: bytes, *, closely: bool) -> bool:
        """Whether a connection that was handed over, between two requests, is to come back for this plain one."""
        if self.is_last_call or self._refuses or (end := data.find(b"\r\n\r\n", 0, head.MOST_BYTES)) < 0:
            return False
        plans, head_ = self.plans(peer_address(transport)), data[: end + 4]
        return head_ in plans.kept or (closely and plans.of(head_) is not None)

    def take_back(self, transport: asyncio.Transport, data: bytes) -> None:
        """It is the lane's from here on, as if `data` had just come."""
        connection = Connection(self)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(data)
