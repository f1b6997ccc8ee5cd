"""How a server comes to its end: the deadline of what may finish, and the launcher that was lost."""

from __future__ import annotations

import asyncio
import os
import time

LOST_SECONDS = 5.0  # to the end without the launcher
GRACE_SECONDS = 30.0  # what runs at SIGTERM may finish within this, all of it together


class Loss:
    """The launcher's end before ours: nothing can be started or ended any more, and the next start mends it all."""

    def __init__(self) -> None:
        self.is_one = False

    def happened(self, stopping: asyncio.Event) -> None:
        self.is_one = True
        stopping.set()
        asyncio.get_running_loop().call_later(LOST_SECONDS, os._exit, self.exit_code)

    @property
    def exit_code(self) -> int:
        return 1 if self.is_one else 0


class Grace:
    """One deadline for everything that may finish: whoever comes later in the stop gets what is left of it."""

    def __init__(self) -> None:
        self._until: float | None = None

    def begin(self) -> None:
        self._until = time.monotonic() + GRACE_SECONDS

    @property
    def left(self) -> float:
        """Seconds; none before `begin`: a start that failed has nothing to finish."""
        return 0.0 if self._until is None else max(0.0, self._until - time.monotonic())
