"""`Acceptor`: a listening socket that several processes share: each takes one connection whenever its loop looks, so
that a crowd of them is not one process's alone."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import cast

from faas.background import Background

log = logging.getLogger("faas.web")

PAUSE_SECONDS = 0.1  # where there are no descriptors left


class Acceptor:
    """`made` makes the protocol of each connection. `close` closes this process's copy of the socket."""

    def __init__(self, listener: socket.socket, made: Callable[[], asyncio.Protocol]) -> None:
        self._listener = listener
        self._made = made
        self._work = Background()
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = True
        self._listen()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._stop()
            if self._timer is not None:
                self._timer.cancel()
            self._listener.close()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._one)

    def _stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)

    def _one(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was quicker, or the client has gone
        except OSError as error:
            self._stop()
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                log.warning("a connection waits: %s", error.strerror)
                self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._listen)
            return  # else it listens no more
        connection.setblocking(False)
        self._work.start(serve(connection, self._made), "a new connection")


async def serve(connection: socket.socket, made: Callable[[], asyncio.Protocol]) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(made, connection)
    except OSError:
        connection.close()  # its client has gone


class Arrived(asyncio.Protocol):
    """A connection that came with bytes that were read of it already: the protocol that `made` makes has them first."""

    def __init__(self, made: Callable[[], asyncio.Protocol], data: bytes) -> None:
        self._made = made
        self._data = data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        protocol, given = self._made(), cast("asyncio.Transport", transport)
        given.set_protocol(protocol)
        protocol.connection_made(given)
        current = given.get_protocol()  # it may have chosen another one
        if self._data and not given.is_closing() and isinstance(current, asyncio.Protocol):
            current.data_received(self._data)
