"""`KnownHeads`: heads of answers that one http function has sent before, byte for byte. Whoever sends one again, with
the whole body behind it in the same read, need not be parsed again: the same bytes mean the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

MOST = 64
MOST_BYTES = 1_024  # of one of them
PAUSE = 1_000  # answers that nothing is learned from, once there were too many heads
WITHOUT_BODY = (204, 304)


class KnownHead(NamedTuple):
    """`length`: of the body, which Content-Length announces. The connection stays open behind it."""

    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    length: int


class KnownHeads:
    """`get` finds one by its bytes, empty line included."""

    __slots__ = ("_known", "_pause", "get")

    def __init__(self) -> None:
        self._known: dict[bytes, KnownHead] = {}
        self._pause = 0
        self.get: Callable[[bytes], KnownHead | None] = self._known.get

    def learn(self, data: bytes, status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """`data` was read at once, and is a whole answer to anything but HEAD that leaves its connection reusable."""
        if self._pause:
            self._pause -= 1
            return
        end = data.find(b"\r\n\r\n") + 4
        length = len(data) - end
        if end > MOST_BYTES or status in WITHOUT_BODY or not _says(fields, length):
            return
        if len(self._known) >= MOST:
            self._known.clear()
            self._pause = PAUSE
        self._known[data[:end]] = KnownHead(status, tuple(fields), length)


def _says(fields: Sequence[tuple[bytes, bytes]], length: int) -> bool:
    """Whether Content-Length, once, frames the body, and nothing else does."""
    framing = [(name, value) for name, value in fields if name.lower() in (b"content-length", b"transfer-encoding")]
    return len(framing) == 1 and framing[0][0].lower() == b"content-length" and framing[0][1] == b"%d" % length
