"""`Crowd`: the open connections of one listener by their client's address, so that no address holds them all.

Nothing is counted down: what is open is asked of the connections themselves, each second, and again before anybody is
refused. So no way in which a connection may end can leave it counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from faas.attempts import network_of
from faas.proxies import TrustedProxies, parsed

SWEEP_SECONDS = 1.0


class Crowd:
    """`most`: of one client, an IPv4 address or an IPv6 /64; 0: any number. This machine and trusted proxies, who stand
    for many clients, may have as many as they like."""

    def __init__(self, most: int, proxies: TrustedProxies) -> None:
        self._most = most
        self._proxies = proxies
        self._open: dict[str, set[asyncio.BaseTransport]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Whether a new connection may stay; if so it counts from now on."""
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        if not self._most or self._is_exempt(address):
            return True
        client = network_of(address)
        connections = self._open.setdefault(client, set())
        if len(connections) >= self._most:
            connections -= {one for one in connections if one.is_closing()}
            if len(connections) >= self._most:
                return False
        connections.add(transport)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        return True

    def open_of(self, client: str) -> int:
        """How many were open at the last look."""
        return len(self._open.get(client, ()))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._open.clear()

    def _is_exempt(self, address: str) -> bool:
        found = parsed(address)
        return found is None or found.is_loopback or self._proxies.trusts(address)

    def _sweep(self) -> None:
        self._timer = None
        for client, connections in list(self._open.items()):
            connections -= {one for one in connections if one.is_closing()}
            if not connections:
                del self._open[client]
        if self._open:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)


class Gate(asyncio.Protocol):
    """A new connection, until it is known whose it is; then it is `then`'s, or refused."""

    def __init__(
        self, crowd: Crowd, then: Callable[[], asyncio.Protocol], otherwise: Callable[[], asyncio.Protocol]
    ) -> None:
        self._crowd = crowd
        self._then = then
        self._otherwise = otherwise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        protocol = self._then() if self._crowd.admits(transport) else self._otherwise()
        cast("asyncio.Transport", transport).set_protocol(protocol)
        protocol.connection_made(transport)
