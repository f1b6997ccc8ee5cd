"""Whether a canary is to be taken back: what both revisions did lately, and what was allowed. Pure; times are given."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from gateway.edge.canary.rule import Limits

SLICES = 30  # of a window: it moves by one of them at a time


@dataclass(slots=True)
class Totals:
    """`seconds`: of the `timed` calls together, in the function."""

    calls: int = 0
    failed: int = 0
    timed: int = 0
    seconds: float = 0.0

    @property
    def percent_failed(self) -> float:
        return 100.0 * self.failed / self.calls if self.calls else 0.0

    @property
    def mean(self) -> float:
        return self.seconds / self.timed if self.timed else 0.0


class Window:
    """What one revision did in the last `seconds`. SLICES + 1 numbers, however many calls there are."""

    def __init__(self, seconds: float) -> None:
        self._slice_seconds = seconds / SLICES
        self._slices: deque[tuple[int, Totals]] = deque()

    def add(self, now: float, *, failed: bool, seconds: float | None) -> None:
        """`seconds`: how long it ran; None where it did not, or that says nothing."""
        number = int(now / self._slice_seconds)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append((number, Totals()))
            self._forget(number)
        totals = self._slices[-1][1]
        totals.calls += 1
        totals.failed += failed
        if seconds is not None:
            totals.timed += 1
            totals.seconds += seconds

    def totals(self, now: float) -> Totals:
        self._forget(int(now / self._slice_seconds))
        found = Totals()
        for _, part in self._slices:
            found.calls += part.calls
            found.failed += part.failed
            found.timed += part.timed
            found.seconds += part.seconds
        return found

    def _forget(self, newest: int) -> None:
        while self._slices and self._slices[0][0] <= newest - SLICES:
            self._slices.popleft()


def verdict(limits: Limits, stable: Totals, canary: Totals) -> str:
    """Why the canary is to go, in words; "" where it may stay."""
    if canary.calls < limits.least:
        return ""
    if limits.errors is not None and canary.percent_failed > stable.percent_failed + limits.errors:
        return (
            f"{canary.percent_failed:.1f} % of its {canary.calls} calls failed, "
            f"{stable.percent_failed:.1f} % of the stable revision's {stable.calls}; allowed: {limits.errors:g} more"
        )
    enough = min(canary.timed, stable.timed) >= limits.least
    if limits.latency is not None and enough and canary.mean > stable.mean * limits.latency:
        return (
            f"its calls take {canary.mean * 1000:.1f} ms in the mean, "
            f"the stable revision's {stable.mean * 1000:.1f} ms; allowed: {limits.latency:g} times that"
        )
    return ""
