"""`Circuits`: the circuit breaker of each function that has one (`circuit`), and of each route.

It is a revision's: a new one, or a rollback, begins closed.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Self

from faas.errors import CircuitOpen
from faas.metrics import Metrics
from faas.protocol import RevisionKey
from faas.rules.circuit import Circuit
from gateway.edge.circuit import Breaker, Permit, State
from gateway.edge.entry import Entry

MOST = 4096  # those that were used longest ago go first; there are as many as are deployed

Where = tuple[str, str, RevisionKey, Circuit]


class Circuits:
    """`clock`: one that never jumps, in seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self.clock = clock
        self._breakers: OrderedDict[Where, Breaker] = OrderedDict()

    def trial(self, entry: Entry | None) -> Trial:
        """`with circuits.trial(entry) as trial:` a call, and `trial.answered(status)` once it has an answer; None: one
        that no circuit is asked for. Raises CircuitOpen."""
        if entry is None or (rule := entry.rules.circuit) is None:
            return Trial(self, "", None)
        breaker, now = self._of(entry, rule), self.clock()
        if wait := breaker.wait(now):
            raise CircuitOpen("the function fails too often", retry_after=max(1, math.ceil(wait)))
        return Trial(self, entry.route.label, breaker)

    def states(self) -> dict[RevisionKey, State]:
        """Of each revision that has circuits which were used: the worst of them."""
        now, found = self.clock(), dict[RevisionKey, State]()
        for (_, _, key, _), breaker in self._breakers.items():
            found[key] = max(found.get(key, State.CLOSED), breaker.state(now))
        return found

    def show(self, label: str, state: State) -> None:
        self._metrics.circuit_state.labels(label).set(state)

    def _of(self, entry: Entry, rule: Circuit) -> Breaker:
        revision = entry.route.revision  # a route that has its function's own rule shares its circuit
        own = rule == revision.spec.rules.circuit
        where: Where = ("", "", revision.key, rule) if own else (entry.api, entry.pattern, revision.key, rule)
        breaker = self._breakers.get(where)
        if breaker is None:
            breaker = self._breakers[where] = Breaker(rule)
            self.show(entry.route.label, State.CLOSED)
            if len(self._breakers) > MOST:
                self._breakers.popitem(last=False)
        else:
            self._breakers.move_to_end(where)
        return breaker


class Trial:
    """One call. What becomes of it is told at its end; a call without an answer says nothing of the function."""

    __slots__ = ("_breaker", "_circuits", "_failed", "_label", "_permit")

    def __init__(self, circuits: Circuits, label: str, breaker: Breaker | None) -> None:
        self._circuits = circuits
        self._label = label
        self._breaker = breaker
        self._permit: Permit | None = None
        self._failed: bool | None = None

    def __enter__(self) -> Self:
        if self._breaker is not None:
            self._permit = self._breaker.begin(self._circuits.clock())
            self._show(self._breaker)
        return self

    def answered(self, status: int) -> None:
        """By the function: our own refusals are exceptions."""
        self._failed = status >= 500

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._breaker is not None and self._permit is not None:
            self._breaker.end(self._permit, self._circuits.clock(), failed=self._failed)
            self._show(self._breaker)

    def _show(self, breaker: Breaker) -> None:
        self._circuits.show(self._label, breaker.state(self._circuits.clock()))
