"""`Breaker`: the circuit breaker's states, as pure decisions. Times are of one monotonic clock, in seconds.

    closed ── too many of the last calls failed ──► open ── `open` later ──► half-open ── a call is well ──► closed
                                                     ▲                           │
                                                     └────── that call fails ────┘

Half-open, one call at a time tries. What was under way when a state began says nothing about it, and does not count.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from faas.rules.circuit import Circuit

SLICES = 10  # of the window: it moves on by one at a time
PROBE_SECONDS = 1.0  # to wait while a call tries


class State(enum.IntEnum):
    """As `faas_circuit_state` shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Permit:
    """A call that was let through, and in which era."""

    era: int


class Breaker:
    """Of one function's revision."""

    def __init__(self, rule: Circuit) -> None:
        self.rule = rule
        self._slice_seconds = rule.window.total_seconds() / SLICES
        self._era = 0  # one more with each change of state
        self._open_until = 0.0
        self._state = State.CLOSED
        self._probing = False
        self._slices: list[tuple[int, int, int]] = []  # (number, calls, failures), oldest first

    def state(self, now: float) -> State:
        return State.HALF_OPEN if self._state is State.OPEN and now >= self._open_until else self._state

    def wait(self, now: float) -> float:
        """Seconds until a call may be tried; 0: now."""
        if self._state is State.CLOSED:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        return PROBE_SECONDS if self._probing else 0.0

    def begin(self, now: float) -> Permit:
        """A call begins. Call it where `wait` has said 0, at the same `now`."""
        if self._state is State.OPEN:
            self._turn(State.HALF_OPEN)
        self._probing = self._state is State.HALF_OPEN
        return Permit(self._era)

    def end(self, permit: Permit, now: float, *, failed: bool | None) -> None:
        """That call is over; `failed` None: it says nothing (it was refused, or its client went away)."""
        if permit.era != self._era:
            return
        if self._state is State.HALF_OPEN:
            self._probing = False
            if failed is not None:
                self._open(now) if failed else self._close()
        elif failed is not None:
            calls, failures = self._count(now, failed)
            if calls >= self.rule.least and failures >= self.rule.errors * calls:
                self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + self.rule.open.total_seconds()
        self._turn(State.OPEN)

    def _close(self) -> None:
        self._slices.clear()
        self._turn(State.CLOSED)

    def _turn(self, state: State) -> None:
        self._state = state
        self._era += 1

    def _count(self, now: float, failed: bool) -> tuple[int, int]:
        """(calls, failures) within the window, with this one."""
        number = int(now / self._slice_seconds)
        slices = self._slices
        if slices and slices[-1][0] == number:
            _, calls, failures = slices[-1]
            slices[-1] = (number, calls + 1, failures + failed)
        else:
            slices.append((number, 1, int(failed)))
        while slices[0][0] <= number - SLICES:
            del slices[0]
        return sum(one[1] for one in slices), sum(one[2] for one in slices)
