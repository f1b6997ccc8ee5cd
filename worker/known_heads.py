"""`KnownHeads`: heads of answers that one http function has sent before, byte for byte. Whoever sends one again, with
the whole body behind it in the same read, need not be parsed again: the same bytes mean the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from faas.leases import KnownHead

MOST = 64
MOST_BYTES = 1_024  # of one of them
PAUSE = 1_000  # answers that nothing is learned from, once there were too many heads
WITHOUT_BODY = (204, 304)


class Known:
    """A head with its bytes, the empty line included; `size`: of the whole answer."""

    __slots__ = ("head", "raw", "raw_size", "size")

    def __init__(self, raw: bytes, head: KnownHead) -> None:
        self.raw = raw
        self.raw_size = len(raw)
        self.size = len(raw) + head.length
        self.head = head


NOTHING = Known(b"", KnownHead(0, (), -1))  # no answer is of this size


class KnownHeads:
    """Of one function. `last`: the one that came last, most likely the next one's; each is Content-Length's, and the
    connection stays open behind it."""

    __slots__ = ("_known", "_pause", "last")

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        self._pause = 0
        self.last = NOTHING

    def of(self, data: bytes) -> Known | None:
        """The head of `data`, a whole answer, where it is known; it is `last` then."""
        end = data.find(b"\r\n\r\n") + 4
        found = self._known.get(data[:end])
        if found is None or found.size != len(data):
            return None
        self.last = found
        return found

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
            self.last = NOTHING
            self._pause = PAUSE
        self._known[data[:end]] = Known(data[:end], KnownHead(status, tuple(fields), length))


def _says(fields: Sequence[tuple[bytes, bytes]], length: int) -> bool:
    """Whether Content-Length, once, frames the body, and nothing else does."""
    framing = [(name, value) for name, value in fields if name.lower() in (b"content-length", b"transfer-encoding")]
    return len(framing) == 1 and framing[0][0].lower() == b"content-length" and framing[0][1] == b"%d" % length
