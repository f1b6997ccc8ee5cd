"""Ports that a test names before another process listens on them."""

from __future__ import annotations

import os
import socket
import weakref
from collections import deque

KEPT = 64  # of those without an owner: the last ones

_kept: deque[int] = deque()


def free_port(owner: object = None, host: str = "127.0.0.1") -> int:
    """A port of `host` that nobody else is given while `owner` lives: it stays bound, without listening.

    Who reuses addresses may listen there all the same, as servers do. The kernel neither gives it to port 0 nor
    connects from it, and refuses whoever connects to it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        port = int(held.getsockname()[1])
        descriptor = held.detach()
    if owner is not None:
        weakref.finalize(owner, os.close, descriptor)
        return port
    _kept.append(descriptor)
    if len(_kept) > KEPT:
        os.close(_kept.popleft())
    return port
