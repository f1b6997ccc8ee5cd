"""`Pace`: whether a client takes what waits for it as fast as it would have to send a body. Who does not is cut: an
answer that nobody reads holds memory, and the instance or the file that it comes from."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios

from faas.web import PACE_BYTES, PROGRESS_SECONDS

LOOK_SECONDS = 5.0  # between two looks at a client that takes nothing
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: what was not taken is dropped, socket(7)


class Pace:
    """Of one client, from when something waits for it. `taken`: bytes, from anywhere; it falls where more is put there.
    Times are of one monotonic clock."""

    __slots__ = ("_since", "_taken")

    def __init__(self, now: float, taken: int) -> None:
        self._since = now
        self._taken = taken

    def is_kept(self, now: float, taken: int) -> bool:
        """False once `PACE_BYTES` were not taken within `PROGRESS_SECONDS`."""
        if not 0 <= taken - self._taken < PACE_BYTES:
            self._since, self._taken = now, taken
        return now - self._since < PROGRESS_SECONDS


def taken(transport: asyncio.Transport) -> int:
    """As `Pace` takes it, of what was written: less than nothing, by what waits in the transport and in the kernel."""
    return -transport.get_write_buffer_size() - unacknowledged(transport.get_extra_info("socket").fileno())


def cut(transport: asyncio.Transport) -> None:
    """End the connection, and all that the kernel holds for it: it would go on sending that for as long as one byte is
    taken now and then."""
    with contextlib.suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()


def unacknowledged(descriptor: int) -> int:
    """Bytes that a socket's kernel has sent, or has yet to send (SIOCOUTQ, tcp(7)); 0 where nobody can say. Without it
    the kernel's megabytes would be taken at once, and then nothing for minutes."""
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # it has been closed
        return 0
