"""`Backoff`: what fails again and again is tried again slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FIRST_SECONDS = 1.0
MOST_SECONDS = 30.0
LIVED_SECONDS = 10.0  # what ends sooner may do so again and again


class Backoff:
    """Pauses of 1, 2, 4 … 30 s after failures; `retry` is called at the end of one that was asked for."""

    def __init__(self, retry: Callable[[], None]) -> None:
        self._call = retry
        self._failures = 0  # since the last success
        self._until = 0.0  # the loop's clock
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pausing(self) -> bool:
        return self._until > asyncio.get_running_loop().time()

    def failed(self) -> None:
        self._failures += 1
        pause = min(MOST_SECONDS, FIRST_SECONDS * 2 ** min(self._failures - 1, 10))
        self._until = asyncio.get_running_loop().time() + pause
        self.cancel()

    def ended(self, lived: float) -> None:
        """One that was ready has ended by itself after so many seconds: its successor starts at once where it lived for
        a while."""
        if lived < LIVED_SECONDS:
            self.failed()

    def succeeded(self) -> None:
        """Whatever failed before is over."""
        if self._failures:
            self._failures = 0
            self._until = 0.0

    def retry_later(self) -> None:
        """Once, at the end of this pause."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._until, self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._until = 0.0
        self._call()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
