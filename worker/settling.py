"""`Settling`: the last lines of ended invocations come after what the function wrote before its answer, which may still
be on its way through the pipes. One timer for all instances; one that begins its next invocation does not wait for it.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

PAUSE_SECONDS = 0.005  # many iterations of the loop
SLICES = 64  # of many lines at once: as many are waited for, each in an iteration of its own


class Settled(Protocol):
    """What has last lines to write."""

    def settle_slice(self) -> float | None:
        """Write some of what stands before the last lines; seconds until the next slice, None where all is written."""
        ...

    def settle_several(self) -> None:
        """Make the reports that are put off, where several ran at once."""
        ...

    def settle(self) -> None:
        """Write the last lines, whatever stands before them."""
        ...


class Settling:
    """Has them written a moment later."""

    def __init__(self) -> None:
        self._ended: dict[Settled, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, ended: Settled) -> None:
        """An invocation of it has ended."""
        self._ended[ended] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._round)

    def settle_several(self) -> None:
        """Have the reports made that are put off."""
        for one in list(self._ended):
            one.settle_several()

    def close(self) -> None:
        """Write all that is left, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for ended in self._ended:
            ended.settle()
        self._ended.clear()

    def _round(self) -> None:
        self._timer = None
        ended, self._ended = self._ended, {}
        for one in ended:
            self._go_on(one, SLICES)

    def _go_on(self, one: Settled, slices: int) -> None:
        if not slices:
            one.settle()
        elif (pause := one.settle_slice()) is not None:
            asyncio.get_running_loop().call_later(pause, self._go_on, one, slices - 1)
