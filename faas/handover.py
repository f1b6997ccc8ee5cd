"""Listening sockets that outlive a server, so that clients of a restart wait in the kernel's queue and are not refused.

In: descriptors 3 and on, as sd_listen_fds(3) has them (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES): from the keeper
(`faas.cli.keeper`), or from systemd's socket units. Out: over a nameless socket pair, to the keeper that asks for them.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from faas.listener import STALLED_READER_MS, bound, listen
from faas.settings import Address, Settings, environment_for

FIRST = 3  # SD_LISTEN_FDS_START
MOST = 16  # sockets
KEEPER = "FAAS_KEEPER"  # the number of our end of the pair
ASK = b"hand over"
NAME_BYTES = 1024


class Handed:
    """What was handed in; use it as a context manager: what nobody took is ended, for all who have it."""

    def __init__(self, sockets: Mapping[str, socket.socket]) -> None:
        self._sockets = dict(sockets)

    @classmethod
    def received(cls) -> Self:
        return cls(received())

    def take(self, name: str, address: Address) -> socket.socket | None:
        """The socket of that name, or of any other name of the wrong kind (systemd's own), that listens there."""
        for known, listener in sorted(self._sockets.items(), key=lambda item: item[0] != name):
            there = bound(listener)
            if there.host == address.host and address.port in (there.port, 0 if known == name else there.port):
                del self._sockets[known]
                listener.setblocking(False)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_READER_MS)
                return listener
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._sockets.values():
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RD)  # a closed copy alone would leave the keeper's listening
            listener.close()
        self._sockets.clear()


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[dict[str, socket.socket]]:
    """All of a server's sockets, those that were handed in among them, before anything is started: a taken port costs
    nothing. Raises AddressTaken, FaasError."""
    wanted = {"public": settings.listen, "api": settings.api_listen, "registry": settings.registry_listen}
    if settings.redirect_listen is not None:
        wanted["redirect"] = settings.redirect_listen
    with contextlib.ExitStack() as stack:
        with Handed.received() as handed:
            sockets = {
                name: stack.enter_context(handed.take(name, address) or listen(address))
                for name, address in wanted.items()
            }
        yield sockets


def received() -> dict[str, socket.socket]:
    """By name; those of one name get a number. None where they are another process's."""
    given = environment_for(("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if given.get("LISTEN_PID") != str(os.getpid()) or not given.get("LISTEN_FDS", "").isdigit():
        return {}
    names = given.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, socket.socket] = {}
    for index in range(min(int(given["LISTEN_FDS"]), MOST)):
        descriptor = FIRST + index
        os.set_inheritable(descriptor, False)
        name = names[index] if index < len(names) else ""
        found[name if name and name not in found else f"{name}#{index}"] = socket.socket(fileno=descriptor)
    return found


def send(end: socket.socket, sockets: Mapping[str, socket.socket]) -> None:
    """Raises OSError."""
    descriptors = array.array("i", [listener.fileno() for listener in sockets.values()])
    end.sendmsg([":".join(sockets).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])


def receive(end: socket.socket) -> dict[str, socket.socket]:
    """What `send` sent; empty where the other side has gone. Raises OSError."""
    names, descriptors, _, _ = socket.recv_fds(end, NAME_BYTES, MOST)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    return dict(zip(names.decode(errors="replace").split(":"), sockets, strict=False)) if sockets else {}


class Successor:
    """Somebody keeps our sockets for the server that comes after us, once it has asked for them."""

    def __init__(self) -> None:
        self.comes = False  # it has our sockets
        number = environment_for((KEEPER,)).get(KEEPER, "")
        self._end: socket.socket | None = None
        if number.isdigit():
            with contextlib.suppress(OSError):
                self._end = socket.socket(fileno=int(number))
                self._end.setblocking(False)
                os.set_inheritable(int(number), False)

    def listen(self, sockets: Mapping[str, socket.socket], stop: Callable[[], None]) -> None:
        """Call `stop` when it has asked for them and has them."""
        end = self._end
        if end is None:
            return
        loop = asyncio.get_running_loop()

        def asked() -> None:
            try:
                if end.recv(len(ASK)) == ASK:
                    send(end, sockets)
                    self.comes = True
                    stop()
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            loop.remove_reader(end)  # the keeper has gone

        loop.add_reader(end, asked)
