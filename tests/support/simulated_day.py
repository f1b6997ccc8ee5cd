"""A day of calls, simulated: the collector and the autoscaler as they are, around counters instead of instances.

`day(seed)` makes the functions of one day, by class; `run` drives one through it with the decisions that the scaler
would take, and `compare` all of them under several policies.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from faas.spec import parse
from gateway.autoscaler import decide
from gateway.collector import Load, Observed
from gateway.keepalive import Pattern, windows

DAY = 86_400.0
STEP = 5.0  # seconds between two ticks
START = 1.0  # seconds until a new instance is ready

Arrivals = Callable[[random.Random], Iterator[float]]


@dataclass(frozen=True, slots=True)
class Function:
    """One function's day: `calls` are (arrival, duration) in seconds, in order."""

    kind: str
    memory: int  # MB
    calls: tuple[tuple[float, float], ...]


@dataclass(slots=True)
class Outcome:
    """`cold`: calls that found no instance free; `idle`: seconds of instances without an invocation, times GB;
    `ahead`: instances that were started though nobody waited."""

    calls: int = 0
    cold: int = 0
    idle: float = 0.0
    ahead: int = 0

    def add(self, other: Outcome) -> None:
        self.calls += other.calls
        self.cold += other.cold
        self.idle += other.idle
        self.ahead += other.ahead


def periodic(every: float, jitter: float) -> Arrivals:
    """A schedule: its calls come up to `jitter` seconds late."""

    def arrivals(rng: random.Random) -> Iterator[float]:
        time = rng.uniform(0, every)
        while True:
            yield time + rng.uniform(0, jitter)
            time += every

    return arrivals


def rare(mean: float) -> Arrivals:
    """Calls that know nothing of each other, `mean` seconds apart on average."""

    def arrivals(rng: random.Random) -> Iterator[float]:
        time = 0.0
        while True:
            time += rng.expovariate(1 / mean)
            yield time

    return arrivals


def bursts(calls: int, within: float, gap: tuple[float, float]) -> Arrivals:
    """Bursts of some `calls`, `within` seconds apart on average, and gaps of very different lengths between them."""

    def arrivals(rng: random.Random) -> Iterator[float]:
        time = rng.uniform(*gap)
        while True:
            for _ in range(rng.randint(calls // 2, calls * 3 // 2)):
                yield time
                time += rng.expovariate(1 / within)
            time += rng.uniform(*gap)

    return arrivals


def then(first: Arrivals, second: Arrivals, at: float = DAY / 2) -> Arrivals:
    """The pattern changes at `at`."""

    def arrivals(rng: random.Random) -> Iterator[float]:
        for time in first(rng):
            if time >= at:
                break
            yield time
        for time in second(rng):
            yield at + time

    return arrivals


MINUTE, HOUR = 60.0, 3600.0
MIX: dict[str, tuple[Arrivals, ...]] = {
    "periodic": (
        periodic(15 * MINUTE, 2), periodic(30 * MINUTE, 20), periodic(HOUR, 5), periodic(HOUR, 3 * MINUTE),
        periodic(12 * MINUTE, 30), periodic(20 * MINUTE, MINUTE),
    ),
    "bursty": (
        bursts(40, 3, (20 * MINUTE, 2 * HOUR)), bursts(200, 1, (HOUR, 4 * HOUR)),
        bursts(8, 20, (5 * MINUTE, 40 * MINUTE)), bursts(30, 0.3, (15 * MINUTE, 90 * MINUTE)),
    ),
    "rare": (rare(HOUR), rare(2 * HOUR), rare(4 * HOUR), rare(8 * HOUR)),
    "steady": (rare(20.0), rare(45.0), rare(3 * MINUTE), rare(8 * MINUTE)),
    "changing": (
        then(periodic(15 * MINUTE, 5), periodic(40 * MINUTE, 10)), then(periodic(HOUR, 10), periodic(20 * MINUTE, 30)),
        then(rare(20.0), periodic(30 * MINUTE, 5)), then(periodic(30 * MINUTE, 5), rare(2 * HOUR)),
    ),
}  # fmt: skip


def day(seed: int) -> list[Function]:
    """The same functions and calls for the same seed."""
    functions = []
    for kind, members in MIX.items():
        for number, arrivals in enumerate(members):
            rng = random.Random(f"{seed} {kind} {number}")
            calls, length, memory = [], rng.uniform(0.05, 2.0), rng.choice((128, 256, 512))
            for time in arrivals(rng):
                if time >= DAY:
                    break
                calls.append((time, length * rng.uniform(0.5, 1.5)))
            functions.append(Function(kind, memory, tuple(sorted(calls))))
    return functions


class _World:
    """One function and its instances: counters, moved by its calls and by what is decided at each tick."""

    def __init__(self, function: Function, window: float, *, learns: bool) -> None:
        self.gigabytes = function.memory / 1024
        self.window = window
        self.spec = parse({"name": "f", "scale": {"idle": window}})
        self.load, self.pattern, self.learns = Load(0.0), Pattern(), learns
        self.windows = windows(self.pattern, window) if learns else None
        self.load.learn = self._learn if learns else None
        self.ready = 0
        self.starting: list[float] = []  # when each is ready
        self.ends: list[float] = []  # of calls in flight
        self.outcome = Outcome()

    def _learn(self, idle: float) -> None:
        before = self.pattern.seen
        self.pattern.record(idle)
        if self.pattern.seen != before:
            self.windows = windows(self.pattern, self.window)

    def pass_time(self, seconds: float) -> None:
        self.outcome.idle += max(0, self.ready - self.load.in_flight) * seconds * self.gigabytes

    def call(self, now: float, duration: float) -> None:
        self.load.enter(now)
        self.outcome.calls += 1
        if self.load.in_flight > self.ready:
            self.outcome.cold += 1
            self.ready += 1
            duration += START
        heapq.heappush(self.ends, now + duration)

    def tick(self, now: float) -> None:
        load, there = self.load, self.ready + len(self.starting)
        ended = None if load.in_flight else load.ended
        observed = Observed(load.in_flight, load.peak(now, self.window), 0.0, 0.0, there, ended, load.seeded)
        desired = decide(self.spec, observed, now, windows=self.windows).desired
        self.starting += [now + START] * (desired - there)
        self.outcome.ahead += max(0, desired - there)
        self.ready = max(min(self.ready, desired - len(self.starting)), load.in_flight)

    def next(self) -> float:
        return min(self.ends[0] if self.ends else DAY, self.starting[0] if self.starting else DAY)

    def happen(self, now: float) -> None:
        """What `next` said."""
        if self.starting and self.starting[0] <= now:
            self.starting.pop(0)
            self.ready += 1
        else:
            heapq.heappop(self.ends)
            self.load.leave(now)


def run(function: Function, idle: float | None, *, standard: float = 600.0, step: float = STEP) -> Outcome:
    """One day with a fixed window of `idle` seconds, or with what is learned (None)."""
    world = _World(function, standard if idle is None else idle, learns=idle is None)
    calls, now, tick = deque(function.calls), 0.0, step
    while now < DAY:
        call = calls[0][0] if calls else DAY
        moment = min(tick, call, world.next(), DAY)
        world.pass_time(moment - now)
        now = moment
        if world.next() <= now < DAY:
            world.happen(now)
        elif call <= now < DAY:
            world.call(*calls.popleft())
        else:
            world.tick(now)
            tick += step
    return world.outcome


def compare(seed: int, policies: Mapping[str, float | None], *, step: float = STEP) -> dict[tuple[str, str], Outcome]:
    """(class, policy) → what the day with this seed came to; the class "all" is their sum."""
    found: defaultdict[tuple[str, str], Outcome] = defaultdict(Outcome)
    for function in day(seed):
        for name, idle in policies.items():
            outcome = run(function, idle, step=step)
            found[function.kind, name].add(outcome)
            found["all", name].add(outcome)
    return dict(found)
