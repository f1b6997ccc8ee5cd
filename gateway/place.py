"""Admission for callers without a task: a slot that is free now, or a place in the line for one.

The same collector, breaker, ceiling and scaler as `gateway.activator`, asked in the same order; where one of them has
to be waited for other than in the breaker's line, the answer is None and the activator's `lease` is the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from faas.errors import Throttled
from faas.leases import Claim
from faas.protocol import Revision
from gateway.activator import Activator
from gateway.breaker import Breaker
from gateway.collector import Load

USED_SECONDS = 0.25  # a scaler that was told of one call need not hear of those that come within it


class Gate:
    """One revision's way in, for all who come by it: its breaker and its load are looked up once."""

    __slots__ = ("activator", "breaker", "breakers_version", "load", "loads_version", "revision", "used_until")

    def __init__(self, activator: Activator, revision: Revision) -> None:
        self.activator = activator
        self.revision = revision
        self.breaker: Breaker
        self.load: Load
        self.breakers_version = self.loads_version = -1  # that these are of
        self.used_until = 0.0  # the scaler knows

    def look(self, now: float) -> None:
        """Have `breaker` and `load` be what they are now."""
        breakers, collector = self.activator.breakers, self.activator.collector
        self.breaker = breakers.of(self.revision)
        self.load = collector.load(self.revision.key, now)
        self.breakers_version, self.loads_version = breakers.version, collector.version

    def used(self, now: float) -> None:
        """Tell the scaler of a call that had a slot at once."""
        self.used_until = now + USED_SECONDS
        self.activator.scaler.used(self.revision)


class Guest:
    """Who comes in by a gate: `enter`, or `line_up` and `take_turn`. Where that gave a claim, `leave` must follow, once
    the claim has given its slot back."""

    _breaker: Breaker
    _load: Load
    _under_ceiling = False

    def enter(self, gate: Gate, request_id: str, now: float) -> Claim | None:
        """A place that is free now; None, and nothing is counted, where there is none."""
        activator = gate.activator
        if activator.breakers.version != gate.breakers_version or activator.collector.version != gate.loads_version:
            gate.look(now)
        breaker, ceiling = gate.breaker, activator.ceiling
        try:
            activator.admit(gate.revision.key)
        except Throttled:
            return None  # and so says the activator, which counts it
        # As `try_enter` of both, but that the slot comes first: then nothing has to be undone where there is none.
        if breaker.inside >= breaker.limit or breaker.waiters:
            return None
        if not breaker.exempt and (ceiling.inside >= ceiling.open_to_all or ceiling.waiters):
            return None
        claim = activator.worker.claim(gate.revision, request_id)
        if claim is not None:
            if now >= gate.used_until:
                gate.used(now)
            self._breaker, self._load = breaker, gate.load
            breaker.inside += 1
            if not breaker.exempt:
                ceiling.inside += 1
                self._under_ceiling = True
            self._load.enter(now)
        return claim

    def leave(self, gate: Gate, now: float) -> None:
        breaker = self._breaker
        self._load.leave(now)
        if self._under_ceiling:
            gate.activator.ceiling.leave()
        if breaker.waiters:
            breaker.leave()
        else:
            breaker.inside -= 1

    def line_up(self, gate: Gate, wait_seconds: float, on_turn: Callable[[], None]) -> Turn | None:
        """A place in the line where all slots are taken; None where that is not what is wanting.

        Raises Throttled where the line is too long, or there is no time to wait.
        """
        activator = gate.activator
        activator.admit(gate.revision.key)
        now = activator.clock()
        gate.look(now)
        breaker = gate.breaker
        if breaker.inside < breaker.limit:
            return None
        turn = Turn(gate, on_turn)
        breaker.line_up(turn, wait_seconds)
        gate.load.enter(now)
        return turn

    def take_turn(self, turn: Turn, request_id: str) -> Claim | None:
        """The slot of an instance that came with the turn; None, and all is given back, where there is none."""
        breaker, activator, now = turn.breaker, turn.gate.activator, turn.gate.activator.clock()
        claim = None
        if breaker.exempt or activator.ceiling.try_enter():
            if (claim := activator.worker.claim(turn.gate.revision, request_id)) is not None:
                turn.gate.used(now)
                self._load, self._breaker, self._under_ceiling = turn.load, breaker, not breaker.exempt
                return claim
            if not breaker.exempt:
                activator.ceiling.leave()
        breaker.leave()
        turn.load.leave(now)
        return None


class Turn:
    """A place in a breaker's line. `on_turn` is called once a slot is its own, then it must be taken; `give_up` until
    then.

    It is called from the loop and not from within the leaving of who was inside: a thousand who find no instance would
    leave one inside the other.
    """

    __slots__ = ("_handle", "_on_turn", "_waits", "breaker", "gate", "load")

    def __init__(self, gate: Gate, on_turn: Callable[[], None]) -> None:
        self.gate = gate
        self.breaker = gate.breaker
        self.load = gate.load
        self._on_turn = on_turn
        self._waits = True
        self._handle: asyncio.Handle | None = None  # its slot is ours

    def done(self) -> bool:
        return not self._waits

    def set_result(self, result: None, /) -> None:
        self._waits = False
        self._handle = asyncio.get_running_loop().call_soon(self._on_turn)

    def give_up(self) -> None:
        """Stand in the line no more, or give back what was not taken."""
        self._waits = False
        self.load.leave(self.gate.activator.clock())
        if self._handle is not None:
            self._handle.cancel()
            self.breaker.leave()
        else:
            self.breaker.step_out(self)

    def too_late(self, wait_seconds: float) -> Throttled:
        return self.breaker.too_late(wait_seconds)
