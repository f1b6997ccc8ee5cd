"""The door of one instance's Runtime API: as many connections at a time as there is room for; those beyond wait in the
kernel, and cost the server nothing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from faas.background import Background

FRUITLESS = 32  # connections that came for nothing: then nobody is let in for a while
PAUSE_SECONDS = 0.1


class RuntimeListener:
    """Accepts on `listener`, which it owns, while fewer than `room` connections are inside."""

    def __init__(self, listener: socket.socket, room: int, connect: Callable[[], asyncio.BaseProtocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._room = room
        self._connect = connect
        self._accepting = Background()
        self._inside = 0
        self._fruitless = 0
        self._pause: asyncio.TimerHandle | None = None
        self._is_open = True
        self._listens = False
        self._update()

    def left(self, *, useful: bool) -> None:
        """A connection has ended; `useful`: it had taken an event or given an answer."""
        self._inside -= 1
        self._fruitless += not useful
        if self._fruitless >= FRUITLESS:
            self._wait()
        self._update()

    def close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._pause is not None:
            self._pause.cancel()
        self._update()
        self._listener.close()

    def _update(self) -> None:
        listens = self._is_open and self._pause is None and self._inside < self._room
        if listens and not self._listens:
            self._loop.add_reader(self._listener, self._accept)
        elif self._listens and not listens:
            self._loop.remove_reader(self._listener)
        self._listens = listens

    def _accept(self) -> None:
        try:
            endpoint, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor is left
            self._wait()
            self._update()
            return
        endpoint.setblocking(False)
        self._inside += 1
        self._update()
        self._accepting.start(self._let_in(endpoint), "a connection to a Runtime API")

    async def _let_in(self, endpoint: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._connect, endpoint)
        except OSError:  # it has gone meanwhile
            endpoint.close()
            self.left(useful=False)

    def _wait(self) -> None:
        self._fruitless = 0
        if self._pause is None:
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._update()
