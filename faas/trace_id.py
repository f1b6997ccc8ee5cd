"""Trace ids in AWS's form, for invocations whose caller sent none."""

from __future__ import annotations

import secrets
import struct
import time

_BATCH = 256
_PARTS = struct.Struct("24s16s")  # of 40 hexadecimal digits


class TraceIds:
    """`next`: `Root=1-…;Parent=…;Sampled=0`, as Lambda makes one for a request that is not traced (X-Ray's tracing
    header). From randomness that is fetched for many at once."""

    __slots__ = ("_ready",)

    def __init__(self) -> None:
        self._ready: list[bytes] = []

    def next(self, now: float) -> bytes:
        """`now`: Unix time."""
        if not self._ready:
            digits = secrets.token_hex(20 * _BATCH).encode()
            self._ready += [b"%b;Parent=%b;Sampled=0" % parts for parts in _PARTS.iter_unpack(digits)]
        return b"Root=1-%08x-%b" % (int(now), self._ready.pop())


def new_trace_id() -> str:
    """One of them."""
    digits = secrets.token_hex(20)
    return f"Root=1-{int(time.time()):08x}-{digits[:24]};Parent={digits[24:]};Sampled=0"
