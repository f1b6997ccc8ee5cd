"""Ports that a test names before another process listens on them."""

from __future__ import annotations

import socket
from collections import deque

KEPT = 64  # reservations, the last ones of this process

_reserved: deque[socket.socket] = deque()


def free_port() -> int:
    """A port of loopback that nobody else is given: it stays bound, without listening. Who reuses addresses may listen
    there all the same, as servers do, while the kernel neither gives it to port 0 nor connects from it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _reserved.append(held)
    if len(_reserved) > KEPT:
        _reserved.popleft().close()
    return int(held.getsockname()[1])
