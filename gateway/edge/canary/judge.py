"""Whether a canary is to be taken back: what both revisions did lately, and what was allowed. Pure; times are given."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

from gateway.edge.canary.rule import Limits

SLICES = 30  # of a window: it moves by one of them at a time
QUANTILES = (0.99, 0.9, 0.5)
BEYOND = 10  # calls that took longer than a quantile before it is looked at: fewer, and it is chance
SHORTEST, GROWTH, BINS = 0.0001, 1.05, 360  # durations are known to 5 %, from 0.1 ms to an hour


@dataclass(slots=True)
class Totals:
    """`times`: how long calls took in the function, where that says something: how many in which bin."""

    calls: int = 0
    failed: int = 0
    times: Counter[int] = field(default_factory=Counter)

    @property
    def percent_failed(self) -> float:
        return 100.0 * self.failed / self.calls if self.calls else 0.0

    @property
    def timed(self) -> int:
        return self.times.total()

    def quantile(self, share: float) -> float:
        """Seconds that `share` of the timed calls did not exceed; 0 without any."""
        left = math.ceil(share * self.timed)
        for number in sorted(self.times):
            left -= self.times[number]
            if left <= 0:
                return SHORTEST * GROWTH**number
        return 0.0


def bin_of(seconds: float) -> int:
    """The one that ends at `seconds` or less than 5 % above."""
    if seconds <= SHORTEST:
        return 0
    return min(BINS - 1, math.ceil(math.log(seconds / SHORTEST) / math.log(GROWTH)))


class Window:
    """What one revision did in the last `seconds`: SLICES times BINS numbers at most, however many calls there are."""

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
            totals.times[bin_of(seconds)] += 1

    def totals(self, now: float) -> Totals:
        self._forget(int(now / self._slice_seconds))
        found = Totals()
        for _, part in self._slices:
            found.calls += part.calls
            found.failed += part.failed
            found.times.update(part.times)
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
    timed = min(canary.timed, stable.timed)
    if limits.latency is None or timed < limits.least:
        return ""
    for share in QUANTILES:
        took, usual = canary.quantile(share), stable.quantile(share)
        if round(timed * (1 - share)) >= BEYOND and took > usual * limits.latency:
            return (
                f"{share * 100:g} % of its calls end within {took * 1000:.1f} ms, "
                f"of the stable revision's within {usual * 1000:.1f} ms; allowed: {limits.latency:g} times that"
            )
    return ""
