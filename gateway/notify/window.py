"""`Window`: how many of each function's invocations failed of late, from counters that only grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

SECONDS = 300.0
LEAST_ERRORS = 3  # fewer are no rate


class Calls(NamedTuple):
    all: int
    errors: int


class Window:
    """`add` at each look. What was counted before the first one is nobody's."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._last: dict[str, Calls] | None = None
        self._looks: deque[tuple[float, dict[str, Calls]]] = deque()
        self._sums: dict[str, Calls] = {}

    def add(self, totals: Mapping[str, Calls], now: float) -> None:
        """Each function's counts so far. One that has fallen began anew."""
        before, self._last = self._last, dict(totals)
        grown = {}
        for name, calls in totals.items() if before is not None else ():
            old = before.get(name, _NONE) if before is not None else _NONE
            new = Calls(calls.all - old.all, calls.errors - old.errors) if calls.all >= old.all else calls
            if new.all > 0:
                grown[name] = new
                self._change(name, new, 1)
        self._looks.append((now, grown))
        while self._looks and not now - self._seconds < self._looks[0][0] <= now:  # or the clock was set back
            for name, old in self._looks.popleft()[1].items():
                self._change(name, old, -1)

    def failing(self) -> dict[str, Calls]:
        """Those with failures enough to speak of a rate."""
        return {name: calls for name, calls in self._sums.items() if calls.errors >= LEAST_ERRORS}

    def _change(self, name: str, by: Calls, sign: int) -> None:
        old = self._sums.get(name, _NONE)
        new = Calls(old.all + sign * by.all, old.errors + sign * by.errors)
        if new.all > 0:
            self._sums[name] = new
        else:
            self._sums.pop(name, None)


_NONE = Calls(0, 0)
