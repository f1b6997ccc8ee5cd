"""`Bodies`: how many bytes of request bodies may lie in memory, those being read and those whose request still runs.

Whoever may connect may send a body, and many bodies are many megabytes before anybody is admitted. The memory is the
process's, and so is the budget: one for all of its listeners.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from faas.errors import PayloadTooLarge, Unavailable

BUDGET_BYTES = 268_435_456  # 256 MiB: 42 of the largest bodies at once, and thousands of usual ones


class Bodies:
    """Counts what has come, not what was announced: a promise costs its sender nothing, and us neither."""

    def __init__(self, limit: int = BUDGET_BYTES) -> None:
        self.limit = limit
        self.held = 0

    def check(self, size: int) -> None:
        """Raises Unavailable where `size` more bytes have no room now."""
        if self.held + size > self.limit:
            raise Unavailable("the server holds as many bytes of requests as it may; try again shortly")

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One body's share of the budget, given back when the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.size


class Share:
    """What one body holds."""

    __slots__ = ("_bodies", "size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    def take(self, size: int) -> None:
        """`size` bytes more. Raises Unavailable where they have no room."""
        self._bodies.check(size)
        self._bodies.held += size
        self.size += size


class BodyLimit:
    """How many bytes one body may have; those that are passed on piece by piece are counted."""

    __slots__ = ("_seen", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._seen = 0

    def count(self, size: int) -> None:
        """`size` bytes more. Raises PayloadTooLarge."""
        self._seen += size
        if self._seen > self.size:
            raise PayloadTooLarge(f"the body has more than {self.size} bytes")


BODIES = Bodies()
