"""`Reservations`: what functions have reserved, each by the revision that `live` names: memory at the worker, a share
of the ceiling, and a breaker for all their revisions together.

A deploy holds the wider of what there is and what comes (`widen`) until it has ended one way or the other (`settle`),
so that a reservation never drops below either while `live` moves.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from faas.errors import SpecError
from faas.protocol import Worker
from faas.spec import FunctionSpec
from gateway.breaker import Breakers
from gateway.ceiling import Ceiling
from gateway.router import function_label

log = logging.getLogger("faas.reservations")


@dataclass(frozen=True, slots=True)
class Reservation:
    """`slots`: invocations at once."""

    slots: int = 0
    memory_bytes: int = 0

    @classmethod
    def of(cls, spec: FunctionSpec) -> Reservation:
        reserved = spec.scale.reserved
        return cls(reserved * spec.concurrency, reserved * spec.memory_bytes)

    def __or__(self, other: Reservation) -> Reservation:
        """What holds both."""
        return Reservation(max(self.slots, other.slots), max(self.memory_bytes, other.memory_bytes))


NONE = Reservation()


class Reservations:
    """Changes are made in one step of the loop; those of one function take turns at the deployer."""

    def __init__(self, worker: Worker, ceiling: Ceiling, breakers: Breakers) -> None:
        self._worker = worker
        self._ceiling = ceiling
        self._breakers = breakers
        self._held: dict[tuple[str, str], Reservation] = {}

    def widen(self, namespace: str, function: str, spec: FunctionSpec) -> None:
        """Hold what `spec` reserves, beside what is held already. Raises SpecError with the numbers where it cannot be,
        and has changed nothing then."""
        before = self._held.get((namespace, function), NONE)
        self._hold(namespace, function, before, before | Reservation.of(spec))

    def settle(self, namespace: str, function: str, spec: FunctionSpec | None) -> None:
        """Hold what the live revision's `spec` reserves and no more; None: nothing. At a start, where the server has
        less than it had, a reservation that it cannot hold any more is logged and not kept; the number still bounds
        the function."""
        before = self._held.get((namespace, function), NONE)
        wanted = NONE if spec is None else Reservation.of(spec)
        held = True
        try:
            self._hold(namespace, function, before, wanted)
        except SpecError as error:
            held = False
            log.error("%s has no reservation: %s", function_label(namespace, function), error.message)
        self._breakers.reserve(namespace, function, wanted.slots, exempt=held)

    def holds(self, namespace: str, function: str, spec: FunctionSpec) -> bool:
        """Whether all that `spec` reserves is kept."""
        if not spec.scale.reserved:
            return True
        held = self._held.get((namespace, function), NONE)
        return held | Reservation.of(spec) == held

    def _hold(self, namespace: str, function: str, before: Reservation, wanted: Reservation) -> None:
        if wanted == before:
            return
        where = (namespace, function)
        self._ceiling.reserve(where, wanted.slots)
        try:
            self._worker.reserve(namespace, function, wanted.memory_bytes)
        except BaseException:
            self._ceiling.reserve(where, before.slots)
            raise
        self._held.pop(where, None)
        if wanted != NONE:
            self._held[where] = wanted
