"""What every answer carries and no two have to compute: the date of this second, and an id."""

from __future__ import annotations

import secrets
import struct
import time
from email.utils import formatdate

from gateway.event import clock_time

_BATCH = 256
_PARTS = struct.Struct("8s 4s x3s x3s 12s")  # of 32 hexadecimal digits


class Stamps:
    """`look` brings all of them up to date; the lane calls it when a second begins. `now` is Unix time."""

    __slots__ = ("_second", "date", "event_time", "now", "tail")

    def __init__(self) -> None:
        self._second = 0
        self.now = 0.0
        self.date = b""  # of an answer's head: `Date: …`, with its line end
        self.tail = b""  # the same between the line before it and the body
        self.event_time = b""
        self.look()

    def look(self) -> Stamps:
        self.now = now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self.date = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
            self.tail = b"\r\n" + self.date + b"\r\n"
            self.event_time = clock_time(second).encode()
        return self


class RequestIds:
    """Random ids as `faas.web.new_request_id` makes them, from randomness that is fetched for many at once."""

    __slots__ = ("_ready",)

    def __init__(self) -> None:
        self._ready: list[tuple[bytes, str]] = []

    def next(self) -> tuple[bytes, str]:
        """Twice the same."""
        if not self._ready:
            digits = secrets.token_hex(16 * _BATCH).encode()
            made = [b"%b-%b-4%b-8%b-%b" % parts for parts in _PARTS.iter_unpack(digits)]
            self._ready += [(one, one.decode()) for one in made]
        return self._ready.pop()
