"""`Deadlines`: one time limit of many. All have the same, so they end in the order of their beginning, and one timer is
enough for all of them: each costs an entry of a dict.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

GRAIN_SECONDS = 0.001  # of a loop's timers
T = TypeVar("T")


class Deadlines(Generic[T]):
    """`seconds` after `add`, `late` is called with whatever has not been discarded; it is none of these any more."""

    __slots__ = ("_begun", "_late", "_timer", "seconds")

    def __init__(self, seconds: float, late: Callable[[T], None]) -> None:
        self.seconds = seconds
        self._late = late
        self._begun: dict[T, float] = {}  # the longest under way first
        self._timer: asyncio.TimerHandle | None = None

    def add(self, limited: T, now: float) -> None:
        """Its time runs from `now` (`time.monotonic`), also where it ran before."""
        self._begun.pop(limited, None)
        self.begin(limited, now)

    def begin(self, limited: T, now: float) -> None:
        """`add`, of one whose time did not run before."""
        self._begun[limited] = now
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._round)

    def discard(self, limited: T) -> None:
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
                self._late(limited)
        if self._timer is None and (oldest := next(iter(self._begun.values()), None)) is not None:
            wait = max(GRAIN_SECONDS, oldest + self.seconds - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait, self._round)
