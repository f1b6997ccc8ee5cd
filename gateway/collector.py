"""What is observed of each revision's load: how many invocations are in flight now, at most, and on average.

Nothing here reads a clock: `now` (seconds, monotonic) comes from the caller, so that decisions can be tested at any
time of the year in microseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from faas.protocol import RevisionKey

STABLE_SECONDS = 60.0
PANIC_SECONDS = 6.0
GRAIN_SECONDS = 0.01  # of when a level was last held, for lower ones that follow a higher one


@dataclass(frozen=True, slots=True)
class Observed:
    """A revision's load at one moment. In flight = executing + waiting.

    `demand`: in flight now; `peak`: the most at any moment of the `idle` window; `stable` and `panic`: averages of
    the last 60 and 6 seconds (or since the first observation); `instances`: what the worker has, starting included.
    `ended`: when the last invocation ended, where none is in flight; `seeded`: the peak may be a seed's.
    """

    demand: int
    peak: int
    stable: float
    panic: float
    instances: int
    ended: float | None = None
    seeded: bool = False


class Load:
    """One revision's load. `enter` and `leave` are on the path of every invocation: a few additions each.

    `ended`: when the last invocation left nothing in flight; `seeded`: nothing has ended since a level was seeded.
    `learn` is told how long nothing was in flight, when that is over.
    """

    __slots__ = (
        "_held_at", "_held_level", "_moved", "_peaks", "_samples", "ended", "in_flight", "learn", "seeded",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.in_flight = 0
        self.ended: float | None = None
        self.seeded = False
        self.learn: Callable[[float], None] | None = None
        # The integral of in_flight over time is the sum of all ends less that of all beginnings, with now for the end
        # of those that have none: an average is a difference of two, over their distance.
        self._moved = 0.0
        # (when a level was last held, the level), levels falling: the maximum of any window that ends now is its
        # first entry that is young enough. Never longer than the highest level.
        self._peaks: deque[tuple[float, int]] = deque()
        self._held_level, self._held_at = 0, now  # the last of them
        self._samples: deque[tuple[float, float]] = deque([(now, 0.0)])  # (time, area), one a tick

    def enter(self, now: float) -> None:
        level = self.in_flight
        self._moved -= now
        if not level and self.learn is not None and self.ended is not None:
            self.learn(now - self.ended)
        self.in_flight = level + 1

    def leave(self, now: float) -> None:
        level = self.in_flight
        self._moved += now
        if level > self._held_level or now - self._held_at >= GRAIN_SECONDS:
            self._held(level, now)
        self.in_flight = level - 1
        if level == 1:
            self.ended, self.seeded = now, False

    def seed(self, level: int, now: float) -> None:
        """Forget the past and behave as if `level` had been in flight until now."""
        self._peaks.clear()
        self._held_level = 0
        self.ended, self.seeded = None, True
        self._moved = -self.in_flight * now
        self._samples = deque([(now, 0.0)])
        if level > 0:
            self._peaks.append((now, level))

    def _held(self, level: int, now: float) -> None:
        self._held_level, self._held_at = level, now
        while self._peaks and self._peaks[-1][1] <= level:
            self._peaks.pop()
        self._peaks.append((now, level))

    def peak(self, now: float, window: float) -> int:
        while self._peaks and self._peaks[0][0] < now - window:
            self._peaks.popleft()
        return max(self.in_flight, self._peaks[0][1] if self._peaks else 0)

    def sample(self, now: float) -> None:
        """Remember the integral for the averages; the tick calls it."""
        self._samples.append((now, self._area_at(now)))
        while len(self._samples) > 2 and self._samples[1][0] <= now - STABLE_SECONDS:
            self._samples.popleft()

    def average(self, now: float, window: float) -> float:
        """Mean in flight over the last `window` seconds, or since the first sample where that is shorter."""
        then, area = self._samples[0]
        for time, value in self._samples:
            if time > now - window:
                break
            then, area = time, value
        return (self._area_at(now) - area) / (now - then) if now > then else float(self.in_flight)

    def _area_at(self, now: float) -> float:
        return self._moved + self.in_flight * now


class Collector:
    """The loads of all revisions that are known to the scaler."""

    def __init__(self) -> None:
        self._loads: dict[RevisionKey, Load] = {}
        self.changed: Callable[[], None] = lambda: None  # called where a revision's load may not be what it was

    def load(self, key: RevisionKey, now: float) -> Load:
        """The load of a revision; it begins with the first question."""
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = Load(now)
        return load

    def observe(self, key: RevisionKey, now: float, *, idle: float, instances: int) -> Observed:
        load = self.load(key, now)
        return Observed(
            demand=load.in_flight,
            peak=load.peak(now, idle),
            stable=load.average(now, STABLE_SECONDS),
            panic=load.average(now, PANIC_SECONDS),
            instances=instances,
            ended=None if load.in_flight else load.ended,
            seeded=load.seeded,
        )

    def forget(self, key: RevisionKey) -> None:
        """Drop a revision; invocations in flight keep counting on the load they hold."""
        self._loads.pop(key, None)
        self.changed()
