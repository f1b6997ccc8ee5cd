"""`Deadlines`: the time limit of one revision's invocations. All have the same, so they end in the order of their
beginning, and one timer is enough for all of them: an invocation costs an entry of a dict.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from faas.errors import TimedOut

GRAIN_SECONDS = 0.001  # of a loop's timers


class Limited(Protocol):
    """What may take so long and no longer."""

    def over_time(self, error: TimedOut) -> None:
        """It has taken too long; it is none of these any more."""
        ...


class Deadlines:
    """`seconds` after `add` whatever has not been discarded is over time."""

    __slots__ = ("_begun", "_timer", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begun: dict[Limited, float] = {}  # the longest under way first
        self._timer: asyncio.TimerHandle | None = None

    def add(self, limited: Limited, now: float) -> None:
        """Its time runs from `now` (`time.monotonic`), also where it ran before."""
        self._begun.pop(limited, None)
        self.begin(limited, now)

    def begin(self, limited: Limited, now: float) -> None:
        """`add`, of one whose time did not run before."""
        self._begun[limited] = now
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._round)

    def discard(self, limited: Limited) -> None:
        """It has ended in time."""
        self._begun.pop(limited, None)

    def close(self) -> None:
        """Nothing is limited any more."""
        self._begun.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _round(self) -> None:
        self._timer = None
        due = time.monotonic() - self.seconds
        for limited in [limited for limited, begun in self._begun.items() if begun <= due]:
            if self._begun.pop(limited, None) is not None:  # else the end of another one ended it too
                limited.over_time(TimedOut(f"Task timed out after {self.seconds:.2f} seconds"))
        if self._timer is None and (oldest := next(iter(self._begun.values()), None)) is not None:
            wait = max(GRAIN_SECONDS, oldest + self.seconds - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._round)
