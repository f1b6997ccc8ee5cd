"""Admission for callers without a task: a slot that is free now, or a place in the line for one.

The same collector, breaker, ceiling and scaler as `gateway.activator`, asked in the same order; where one of them has
to be waited for other than in the breaker's line, the answer is None and the activator's `lease` is the way.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol

from faas.deadlines import Deadlines
from faas.errors import Throttled
from faas.leases import Claim
from faas.protocol import Door, Revision
from faas.spec import Interface
from gateway.activator import Activator
from gateway.breaker import Breaker
from gateway.ceiling import Ceiling
from gateway.collector import Load

USED_SECONDS = 0.25  # a scaler that was told of one call need not hear of those that come within it


# What one passes, as it is now: a ceiling of None for those it does not count.
Way = tuple[Breaker, Ceiling | None, Load, Door]


class Gate:
    """One revision's way in, for all who come by it: it is looked up once, until somebody says `forget`."""

    __slots__ = ("__weakref__", "activator", "revision", "used_until", "waits", "way")

    def __init__(self, activator: Activator, revision: Revision) -> None:
        self.activator = activator
        self.revision = revision
        self.way: Way | None = None  # as far as it is known
        self.used_until = 0.0  # the scaler knows
        self.waits = Deadlines(revision.spec.queue_timeout, Turn.late)
        activator.watch(self)

    def forget(self) -> None:
        """It may be another one by now."""
        self.way = None

    def look(self, now: float) -> Way | None:
        """The way; None where the activator has to be asked, which says why."""
        activator = self.activator
        if activator.is_closed:
            return None
        try:
            will_do = activator.admit(self.revision.key)
        except Throttled:
            return None
        way = self.asked(now)
        if will_do:
            self.way = way
        return way

    def asked(self, now: float) -> Way:
        """The way, looked up."""
        activator, revision = self.activator, self.revision
        breaker = activator.breakers.of(revision)
        load = activator.collector.load(revision.key, now)
        return breaker, None if breaker.exempt else activator.ceiling, load, activator.worker.door(revision)

    def used(self, now: float) -> None:
        """Tell the scaler of a call that had a slot at once."""
        self.used_until = now + USED_SECONDS
        self.activator.scaler.used(self.revision)


class Guest:
    """Who comes in by a gate: `enter`, or `line_up` and `take_turn`. Where that gave a claim, `leave` must follow: of
    an http function once its slot has been given back, of a Lambda function in the same step."""

    _way: Way

    def enter(self, gate: Gate, request_id: str, now: float) -> Claim | None:
        """A place that is free now; None, and nothing is counted, where there is none."""
        if (way := gate.way or gate.look(now)) is None:
            return None
        # As `try_enter` of both, but that the slot comes first: then nothing has to be undone where there is none.
        breaker, ceiling, load, door = way
        if breaker.inside >= breaker.limit or breaker.waiters:
            return None
        if ceiling is not None and (ceiling.inside >= ceiling.open_to_all or ceiling.waiters):
            return None
        if (claim := door(request_id)) is None:
            gate.way = None
            return None
        self._way = way
        breaker.inside += 1
        if ceiling is not None:
            ceiling.inside += 1
        load.enter(now)
        if now >= gate.used_until:
            gate.used(now)
        return claim

    def leave(self, now: float) -> None:
        breaker, ceiling, load, _ = self._way
        load.leave(now)
        if ceiling is not None:
            if ceiling.waiters:
                ceiling.leave()
            else:
                ceiling.inside -= 1
        if breaker.waiters:
            breaker.leave()
        else:
            breaker.inside -= 1

    def line_up(self, gate: Gate, waiting: Waiting, now: float) -> Turn | None:
        """A place in the line where all slots are taken; None where that is not what is wanting.

        Raises Throttled where the line is too long, or there is no time to wait.
        """
        if (way := gate.way) is None:
            gate.activator.admit(gate.revision.key)
            way = gate.asked(now)
        breaker, _, load, _ = way
        if breaker.inside < breaker.limit:
            return None
        turn = Turn(gate, way, waiting)
        breaker.line_up(turn, gate.waits.seconds)
        gate.waits.begin(turn, now)
        load.enter(now)
        return turn

    def take_turn(self, turn: Turn, request_id: str, now: float) -> Claim | None:
        """The slot of an instance that came with the turn; None, and all is given back, where there is none."""
        gate, (breaker, ceiling, load, door) = turn.gate, turn.way
        if ceiling is None or ceiling.try_enter():
            if (claim := door(request_id)) is not None:
                if now >= gate.used_until:
                    gate.used(now)
                self._way = turn.way
                return claim
            if ceiling is not None:
                ceiling.leave()
        breaker.leave()
        load.leave(now)
        return None


class Waiting(Protocol):
    """Who has a turn."""

    def on_turn(self) -> None:
        """A slot is its own, and must be taken. Raises nothing."""
        ...

    def on_late(self, turn: Turn) -> None:
        """None was free for so long: the turn must be given up."""
        ...


class Turn:
    """A place in a breaker's line, until `waiting` is told that its turn has come; `give_up` until it has taken it.

    Where whoever leaves gives its slot back in the same step, as those of Lambda functions do, it is told from within
    their leaving, and takes that very slot; but not within that of one who was itself told so, for a thousand who find
    no instance would leave one inside the other.
    """

    __slots__ = ("_handle", "_is_waiting", "_waiting", "breaker", "gate", "load", "way")

    def __init__(self, gate: Gate, way: Way, waiting: Waiting) -> None:
        self.gate = gate
        self.way = way
        self.breaker, _, self.load, _ = way
        self._waiting = waiting
        self._is_waiting = True
        self._handle: asyncio.Handle | None = None  # its slot is ours

    def done(self) -> bool:
        return not self._is_waiting

    def set_result(self, result: None, /) -> None:
        self._is_waiting = False
        gate, breaker = self.gate, self.breaker
        gate.waits.discard(self)
        if breaker.is_handing_on or gate.revision.interface is not Interface.LAMBDA:
            self._handle = asyncio.get_running_loop().call_soon(self._waiting.on_turn)
            return
        breaker.is_handing_on = True
        try:
            self._waiting.on_turn()
        finally:
            breaker.is_handing_on = False

    def late(self) -> None:
        self._waiting.on_late(self)

    def give_up(self) -> None:
        """Stand in the line no more, or give back what was not taken."""
        self._is_waiting = False
        gate = self.gate
        gate.waits.discard(self)
        self.load.leave(monotonic())
        if self._handle is not None:
            self._handle.cancel()
            self.breaker.leave()
        else:
            self.breaker.step_out(self)

    def too_late(self) -> Throttled:
        return self.breaker.too_late(self.gate.waits.seconds)
