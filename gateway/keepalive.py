"""When the next call of a function is expected: learned from the times between its calls.

The hybrid histogram policy of "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020): how long a function lay idle
before each call is counted in a histogram; an unused instance goes early, one is started again just before most calls
have come (5th percentile), and is kept until nearly all have (99th). Ours differs from the paper's in this:

- An instance stays for `LINGER` seconds after each call in any case, and shorter idle times are not counted: calls in
  quick succession say nothing about the next burst, and cost nothing here.
- Bins are as wide as 2.3 % of their time instead of one minute. A new idle time makes all older ones weigh less
  (`FADING`), so that a change of pattern is learned within some ten calls.
- Whether a pattern is good for anything is decided by its price, not by a coefficient of variation: of the paper's
  windows, narrower ones, the fixed window and none at all, the one that would have cost least on what is known is
  taken. Cold starts are paid in idle seconds: one is worth the fixed window, as it is to whoever sets one.
- Idle times beyond the histogram (4 hours) are kept as they are, the last `BEYOND` of them, instead of an ARIMA model:
  where they are alike, as a daily schedule's are, the same windows around them come out.

Everything here is a pure function of what it is given; nothing reads a clock. Times are seconds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from faas.checks import rough_duration

LINGER = 60.0
LONGEST = 4 * 3600.0  # of the histogram
BINS = 240
RATIO = (LONGEST / LINGER) ** (1 / BINS)  # of a bin's end to its begin
BEYOND = 8
FADING = 0.93  # what an older idle time weighs when one more has come
FAINT = 0.01  # what weighs less is dropped: a histogram has 64 bins in use at most
LEAST = 3  # so many idle times make a pattern
EARLY, LATE = 0.05, 0.99  # the paper's percentiles
LOWS, HIGHS = (EARLY, 0.25, 0.5), (LATE, 0.75, 0.5)
MARGIN, MARGIN_MOST = 0.1, 60.0  # before and after; the paper's 10 %, but a minute is enough for bins as fine as these
ABSENCE = 60.0  # an instance does not go for less
HALF = 0.5  # of the calls must come within a window: one around a single call is chance
WORTH = 0.75  # what is learned must cost so much less than the fixed window: chance finds small gains everywhere


@dataclass(frozen=True, slots=True)
class Windows:
    """An unused instance stays for `linger` after a call. With `prewarm` 0 it stays on until `keep`; else it goes, one
    is started `prewarm` after the call's end, and is kept for `keep`."""

    prewarm: float
    keep: float
    reason: str
    linger: float = LINGER

    @property
    def end(self) -> float:
        """After the call's end: from here on nothing is kept."""
        return self.prewarm + self.keep

    def wants(self, idle: float) -> bool:
        """Whether there is to be an instance `idle` seconds after the last call's end."""
        return idle <= self.linger or self.prewarm <= idle <= self.end

    def price(self, idle: float, cold: float) -> float:
        """What an idle time of this length costs, in idle seconds of an instance, where a cold start costs `cold`."""
        lingered = min(idle, self.linger)
        if not self.prewarm:
            return min(idle, max(self.keep, lingered)) + (0.0 if self.wants(idle) else cold)
        waited = min(max(0.0, idle - self.prewarm), self.keep)
        return lingered + waited + (0.0 if self.wants(idle) else cold)


@dataclass(slots=True)
class Pattern:
    """How long a function lay idle between its calls. About 10 KB in memory at most, 2 KB as text.

    `bins`: bin → weight; `beyond`: the last idle times that were longer than the histogram, and `far` their weight.
    `seen`: how many idle times were recorded.
    """

    bins: dict[int, float] = field(default_factory=dict)
    beyond: deque[float] = field(default_factory=lambda: deque(maxlen=BEYOND))
    far: float = 0.0
    seen: int = 0

    def record(self, idle: float) -> None:
        """A call came `idle` seconds after the end of the one before. Up to `LINGER` it says nothing."""
        if not LINGER < idle < math.inf:
            return
        self.seen += 1
        self.bins = {number: faded for number, weight in self.bins.items() if (faded := weight * FADING) >= FAINT}
        self.far *= FADING
        if idle >= LONGEST:
            self.beyond.append(idle)
            self.far += 1.0
        else:
            number = min(BINS - 1, int(math.log(idle / LINGER) / math.log(RATIO)))
            self.bins[number] = self.bins.get(number, 0.0) + 1.0

    def spans(self) -> list[tuple[float, float, float]]:
        """(shortest, longest, weight) of what is known, in the order of time."""
        known = [(LINGER * RATIO**n, LINGER * RATIO ** (n + 1), weight) for n, weight in sorted(self.bins.items())]
        each = self.far / len(self.beyond) if self.beyond else 0.0
        return known + [(idle, idle, each) for idle in sorted(self.beyond) if each >= FAINT]

    def dump(self) -> str:
        bins = {str(number): round(weight, 3) for number, weight in self.bins.items()}
        far = round(self.far, 3)
        return json.dumps({"bins": bins, "beyond": [round(b, 1) for b in self.beyond], "far": far, "seen": self.seen})

    @classmethod
    def load(cls, text: str) -> Self:
        """Raises ValueError where this is none that `dump` made."""
        try:
            data: dict[str, Any] = json.loads(text)
            bins = {int(number): float(weight) for number, weight in data["bins"].items()}
            beyond = deque((float(b) for b in data["beyond"]), maxlen=BEYOND)
            far, seen = float(data["far"]), int(data["seen"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no pattern: {error}") from None
        weights = (*bins.values(), *beyond, far, seen)
        if not all(0 <= number < BINS for number in bins) or not all(0 <= w < math.inf for w in weights):
            raise ValueError("no pattern: a number is out of range")
        return cls(bins, beyond, far, seen)


def windows(pattern: Pattern, standard: float) -> Windows:
    """What is best for calls as they have come. `standard`: the fixed window, in force until a pattern is known."""
    if pattern.seen < LEAST:
        return Windows(0.0, standard, f"{pattern.seen} of {LEAST} idle times are known")
    known = pattern.spans()
    fixed = Windows(0.0, standard, "the fixed window is the best for calls as they came")
    gone = Windows(0.0, LINGER, "calls come too late and too irregularly to wait for")

    def price(choice: Windows) -> float:
        """With one idle time more, longer than any: what is known is not all that can happen."""
        paid = sum(weight * choice.price((low + high) / 2, standard) for low, high, weight in known)
        return paid + choice.price(math.inf, standard)

    best = min([*_learned(known), gone], key=price)
    return best if price(best) <= WORTH * price(fixed) else fixed


def wanted(windows: Windows, ended: float, now: float) -> bool:
    """Whether there is to be an instance at `now`, where the last call ended at `ended` and none has come since."""
    return windows.wants(max(0.0, now - ended))


def _learned(known: list[tuple[float, float, float]]) -> Iterator[Windows]:
    """Windows around what is known, the paper's first; those that would have met less than half of the calls are left
    out."""
    total = sum(weight for *_, weight in known)
    for low, high in itertools.product(LOWS, HIGHS):
        begin, end = known[_at(known, low)][0], known[_at(known, high)][1]
        early, late = begin - min(begin * MARGIN, MARGIN_MOST), end + min(end * MARGIN, MARGIN_MOST)
        for prewarm in (early, 0.0):
            choice = Windows(prewarm, late - prewarm, "")
            share = sum(weight for first, last, weight in known if choice.wants((first + last) / 2)) / total
            if share >= HALF and (not prewarm or prewarm >= LINGER + ABSENCE):
                where = f"{rough_duration(begin if prewarm else 0)} to {rough_duration(end)}"
                yield dataclasses.replace(choice, reason=f"{share:.0%} of the calls come {where} after the one before")


def _at(known: list[tuple[float, float, float]], quantile: float) -> int:
    """Which of them the quantile falls into."""
    total, below = sum(weight for *_, weight in known), 0.0
    for number, (_, _, weight) in enumerate(known):
        below += weight
        if below >= quantile * total - 1e-9:
            return number
    return len(known) - 1
