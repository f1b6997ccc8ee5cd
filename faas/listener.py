"""Listening sockets: bound before anything else starts, and a taken port says who holds it."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from faas.errors import FaasError
from faas.settings import Address

BACKLOG = 1024
# A peer that takes nothing of what was sent to it for this long is cut off. Accepted sockets inherit it.
STALLED_READER_MS = 60_000


class AddressTaken(FaasError):
    """Another process listens there."""

    code = "AddressTaken"


def listen(address: Address) -> socket.socket:
    """A non-blocking listening TCP socket. Raises AddressTaken that names the holder, or FaasError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_READER_MS)
        listener.bind((address.host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressTaken(
                f"{address} is taken" + holder(address.port), hint="stop it, or choose another port"
            ) from None
        raise FaasError(f"cannot listen on {address}: {error.strerror}") from None
    return listener


def end(listener: socket.socket) -> list[socket.socket]:
    """Take no more; the connections that its queue had, not blocking. A plain close would reset them, and with them
    requests that their clients have sent already.
    """
    queued: list[socket.socket] = []
    with contextlib.suppress(OSError):  # it is empty, or we are out of descriptors
        while len(queued) < 2 * BACKLOG:  # more than it holds: clients may come faster than they are taken
            queued.append(listener.accept()[0])
    listener.shutdown(socket.SHUT_RD)  # now: the loop's close may come later
    for connection in queued:
        connection.setblocking(False)
    return queued


def bound(listener: socket.socket) -> Address:
    """The real address: port 0 has become a number."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def holder(port: int) -> str:
    """` by NAME (pid N)` of the process that listens on `port`; empty where it cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:  # 0A is LISTEN
                inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").iterdir() if inodes else ():
        if not process.name.isdigit():
            continue
        try:
            if any(link in inodes for link in _links(process / "fd")):
                return f" by {(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # ended meanwhile, or another user's
    return ""


def _links(descriptors: Path) -> Iterator[str]:
    for entry in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(entry.readlink())
