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


class Place:
    """Inside, with a slot of an instance: `claim`. `leave` must follow, once the claim has given the slot back."""

    __slots__ = ("_activator", "_breaker", "_load", "_under_ceiling", "claim")

    def __init__(self, activator: Activator, breaker: Breaker, load: Load, claim: Claim) -> None:
        self._activator = activator
        self._breaker = breaker
        self._load = load
        self._under_ceiling = not breaker.exempt
        self.claim = claim

    def leave(self) -> None:
        activator, breaker = self._activator, self._breaker
        self._load.leave(activator.clock())
        if self._under_ceiling:
            activator.ceiling.leave()
        activator.breakers.leave(breaker)


class Turn:
    """A place in a breaker's line. `on_turn` is called once a slot is ours, then `claim` must follow; `give_up` until
    then.

    It is called from the loop and not from within the leaving of who was inside: a thousand who find no instance would
    leave one inside the other.
    """

    __slots__ = ("_activator", "_breaker", "_handle", "_load", "_on_turn", "_revision", "_waits")

    def __init__(
        self, activator: Activator, revision: Revision, breaker: Breaker, load: Load, on_turn: Callable[[], None]
    ) -> None:
        self._activator = activator
        self._revision = revision
        self._breaker = breaker
        self._load = load
        self._on_turn = on_turn
        self._waits = True
        self._handle: asyncio.Handle | None = None  # its slot is ours

    def done(self) -> bool:
        return not self._waits

    def set_result(self, result: None, /) -> None:
        self._waits = False
        self._handle = asyncio.get_running_loop().call_soon(self._on_turn)

    def claim(self, request_id: str) -> Place | None:
        """The slot of an instance that came with the turn; None, and all is given back, where there is none."""
        claim = _claim(self._activator, self._revision, self._breaker, request_id)
        if claim is None:
            self._load.leave(self._activator.clock())
            return None
        return Place(self._activator, self._breaker, self._load, claim)

    def give_up(self) -> None:
        """Stand in the line no more, or give back what was not claimed."""
        activator, breaker = self._activator, self._breaker
        self._waits = False
        self._load.leave(activator.clock())
        if self._handle is not None:
            self._handle.cancel()
            activator.breakers.leave(breaker)
        else:
            breaker.step_out(self)
            activator.breakers.forget_unused(breaker)

    def too_late(self, wait_seconds: float) -> Throttled:
        return self._breaker.too_late(wait_seconds)


def enter(activator: Activator, revision: Revision, request_id: str) -> Place | None:
    """A place that is free now; None, and nothing is counted, where there is none."""
    try:
        activator.admit(revision.key)
    except Throttled:
        return None  # and so says the activator, which counts it
    breaker = activator.breakers.of(revision)
    if not breaker.try_enter():
        activator.breakers.forget_unused(breaker)
        return None
    claim = _claim(activator, revision, breaker, request_id)
    if claim is None:
        return None
    now = activator.clock()
    load = activator.collector.load(revision.key, now)
    load.enter(now)
    return Place(activator, breaker, load, claim)


def line_up(activator: Activator, revision: Revision, wait_seconds: float, on_turn: Callable[[], None]) -> Turn | None:
    """A place in the line where all slots of `revision` are taken; None where that is not what is wanting.

    Raises Throttled where the line is too long, or there is no time to wait.
    """
    activator.admit(revision.key)
    breaker = activator.breakers.of(revision)
    if breaker.inside < breaker.limit:
        activator.breakers.forget_unused(breaker)
        return None
    now = activator.clock()
    load = activator.collector.load(revision.key, now)
    turn = Turn(activator, revision, breaker, load, on_turn)
    breaker.line_up(turn, wait_seconds)
    load.enter(now)
    return turn


def _claim(activator: Activator, revision: Revision, breaker: Breaker, request_id: str) -> Claim | None:
    """For who is inside `breaker`: out again where there is no room under the ceiling, or no slot."""
    ceiling = None if breaker.exempt else activator.ceiling
    if ceiling is None or ceiling.try_enter():
        claim = activator.worker.claim(revision, request_id)
        if claim is not None:
            activator.scaler.used(revision)
            return claim
        if ceiling is not None:
            ceiling.leave()
    activator.breakers.leave(breaker)
    return None
