"""One memory ledger for the machine: what every instance is charged, who waits for memory, who makes room for whom.

Nothing starts before its memory is charged, and all charges together never exceed the budget. An instance is charged
its limit from before its start until its processes are dead, but for the time in which it stands still: then it is
charged what it has, and gets the rest back, like a start, before it goes on. An idle one is evicted as soon as somebody
needs its memory.

Who asks for more than is free waits, first come first served. A smaller request may pass one that does not fit, but
only for `PATIENCE_SECONDS`: from then on whatever becomes free is kept for the older one. `admission.plan` decides;
`Ledger` holds the books and carries it out. What is reserved for a function (`reserve`) nobody else gets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

from faas.errors import FaasError, SpecError, Throttled
from faas.metrics import Metrics
from faas.protocol import NO_MEMORY, Kind
from faas.settings import MEMORY_BUDGET_LEAST
from worker.memory.admission import PATIENCE_SECONDS, Plan, plan
from worker.memory.budget import MEGABYTE
from worker.memory.charge import Charge, Readmission, Request
from worker.memory.eviction import Owner, label_of, unprotected, victims
from worker.memory.reserves import Reserves


def unreserved_least(budget: int) -> int:
    """Bytes of the budget that are never reserved: who has reserved nothing must be able to run."""
    return max(budget // 10, MEMORY_BUDGET_LEAST * MEGABYTE)


class Ledger:
    """The books. `clock` gives seconds, monotonic. One event loop's: nothing here is for threads."""

    def __init__(self, budget: int, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self.clock = clock
        self.charged = dict.fromkeys(Kind, 0)  # bytes
        self.evictions = dict.fromkeys(Kind, 0)
        self.resting: dict[Charge, None] = {}
        self.reserves = Reserves()
        self.yielding = 0  # bytes of charges that are about to shrink
        self.hurry: Callable[[], None] = lambda: None  # have what rests stand still at once: somebody waits for it
        self.pausing: dict[Callable[[], None], None] = {}  # have what paused come to rest at once
        self._charges: dict[Charge, None] = {}
        self._leaving = 0
        self._queue: dict[Request, None] = {}  # the oldest first
        self._settling = self._again = False
        self._count_eviction = {kind: metrics.memory_evictions.labels(kind.value).inc for kind in Kind}
        metrics.memory_budget.set(budget)
        for kind in Kind:
            metrics.memory_charged.labels(kind.value).set_function(partial(self.charged.__getitem__, kind))

    @property
    def free(self) -> int:
        return self.budget - sum(self.charged.values())

    @property
    def waiting(self) -> int:
        """Requests."""
        return len(self._queue)

    def stuck(self, owner: Owner) -> int:
        """So many of its requests wait for memory that is not even on its way."""
        return sum(request.owner is owner and not request.promised for request in self._queue)

    def is_owed(self, owner: Owner) -> bool:
        """Whether somebody else waits so long that an instance of `owner` which has just become idle is theirs."""
        oldest = next(iter(self._queue), None)
        return oldest is not None and oldest.owner is not owner and self._is_overdue(oldest)

    def _is_overdue(self, request: Request) -> bool:
        return self.clock() - request.since >= PATIENCE_SECONDS

    def ask(
        self, kind: Kind, size: int, owner: Owner | None = None, lost: Callable[[], None] = lambda: None
    ) -> Request:
        """A place in the queue for `size` bytes; await its `charge`. `lost` is called where it was promised, and is not
        any more. Raises Throttled on more than the whole budget."""
        if size > self.budget:
            raise self.refusal(size)
        for at_rest in list(self.pausing):
            at_rest()
        request = Request(self, kind, size, owner, lost)
        self._queue[request] = None
        self.settle()
        return request

    def try_charge(self, kind: Kind, size: int, owner: Owner | None = None) -> Charge | None:
        """`size` bytes if they are free and nobody waits for them: nobody makes room for it."""
        return self._charge(kind, size, owner) if self.can_have(size, owner) else None

    def can_have(self, size: int, owner: Owner | None) -> bool:
        """Whether `size` bytes more are free, and nobody waits for them."""
        label = label_of(owner)
        if self._queue and size > self.reserves.unused(label):
            return False
        return size <= self.free - self.reserves.kept_from(label)

    def readmit(self, charge: Charge, granted: Callable[[], None], lost: Callable[[], None]) -> Readmission:
        """A place in the queue for the rest of a shrunk charge, which may be evicted meanwhile: then, or where it is
        not wanted any more, `forget` it. `granted` is called when the charge is full again, and in use."""
        request = Readmission(self, charge, granted, lost)
        self._queue[request] = None
        self.look_again()  # not now: what that makes go may be next to ask
        return request

    def reserve(self, label: str, size: int) -> None:
        """Keep `size` bytes for this function's instances, others' idle ones making room at once; 0: none. Raises
        SpecError where too little would be left for everybody."""
        others, rest = self.reserves.others(label), unreserved_least(self.budget)
        if size and others + size > self.budget - rest:
            numbers = [f"{number // MEGABYTE} MB" for number in (size, self.budget, others, rest)]
            raise SpecError(
                "scale.reserved: {} cannot be reserved: of {} (memory_budget) others have reserved {}, and {} stay for "
                "all".format(*numbers),
                key="scale.reserved",
                hint="lower scale.reserved or memory, or raise the server's memory_budget",
            )
        self.reserves.set(label, size)
        short = self.reserves.unused_bytes - self.free - self._leaving
        if short > 0:
            held, _ = self._held()
            self._evict(victims(short, self.reserves.beyond(unprotected(self.resting, held)), None, self.clock()))
        self.settle()

    def refusal(self, size: int, waited: float | None = None) -> Throttled:
        """What is said to whom there is no memory for."""
        budget = f"the {self.budget // MEGABYTE} MB that all instances may have together (memory_budget)"
        if size > self.budget:
            return Throttled(
                f"{size // MEGABYTE} MB are more than {budget}",
                reason=NO_MEMORY,
                hint="lower memory, or raise memory_budget",
            )
        within = "" if waited is None else f" within {waited:g} s"
        taken = "in use or reserved" if self.reserves.unused_bytes else "in use"
        return Throttled(
            f"no memory was free{within}: {size // MEGABYTE} MB are wanted, and {budget} are {taken}",
            reason=NO_MEMORY,
            hint="try again, or raise memory_budget",
        )

    def close(self, error: FaasError) -> None:
        """Tell everybody who waits."""
        for request in list(self._queue):
            request.refuse(error)
        self._queue.clear()

    # For charges and requests

    def left(self, charge: Charge) -> None:
        self._leaving += charge.size
        self.reserves.take(label_of(charge.owner), -charge.size)
        self.settle()

    def resize(self, charge: Charge, size: int) -> None:
        more = size - charge.size
        charge.size = size
        self.charged[charge.kind] += more
        self.reserves.take(label_of(charge.owner), more)
        if more < 0:
            self.settle()

    def look_again(self) -> None:
        """What was in sight for those who wait is not any more."""
        if self._queue:
            asyncio.get_running_loop().call_soon(self.settle)  # nobody is evicted in the midst of a claim

    def released(self, charge: Charge) -> None:
        del self._charges[charge]
        self._leaving -= charge.size
        self.charged[charge.kind] -= charge.size
        self.settle()

    def forget(self, request: Request) -> None:
        request.timer.cancel()
        if request in self._queue:
            del self._queue[request]
            self.settle()  # what was kept for it is the next one's

    def settle(self) -> None:
        """Give out what is free, and make room. Free of cost where nobody waits."""
        if not self._queue:
            return
        self._again = True
        if self._settling:
            return  # an eviction's own consequences: seen below
        self._settling = True
        try:
            while self._again and self._queue:
                self._again = False
                self._carry_out(self._plan())
        finally:
            self._settling = False

    def _held(self) -> tuple[dict[Owner, int], dict[str, int]]:
        """Instances by owner, and bytes that need not end by label: jobs, services, and what is provisioned."""
        held: dict[Owner, int] = {}
        pinned: dict[str, int] = {}
        for charge in self._charges:
            if charge.kind not in (Kind.JOB, Kind.SERVICE):
                if charge.owner is None or charge.leaving:
                    continue
                held[charge.owner] = held.get(charge.owner, 0) + 1
                if held[charge.owner] > charge.owner.provisioned:
                    continue
            label = label_of(charge.owner)
            pinned[label] = pinned.get(label, 0) + charge.size
        return held, pinned

    def _plan(self) -> Plan[Request, Charge]:
        held, pinned = self._held()
        reachable = self.budget - sum(pinned.values()) - self.reserves.beside(pinned)
        may_go = unprotected(self.resting, held)
        leaving, working = self._leaving + self.yielding, {charge.owner for charge in self._charges if charge.is_held}
        return plan(self._queue, may_go, self.free, leaving, reachable, self.clock(), self.reserves, working)

    def _carry_out(self, made: Plan[Request, Charge]) -> None:
        before = [request for request in self._queue if request.promised]
        for request in before:
            request.promised = False
        for request in made.promised:
            request.promised = True
        for request in made.granted:
            del self._queue[request]
            self._grant(request)
        self._evict(made.evicted)
        if made.promised and self.yielding:
            self.hurry()
        for request in before:
            if request in self._queue and not request.promised:
                request.lost()

    def _grant(self, request: Request) -> None:
        if (charge := request.grows) is not None:
            charge.use()
            self.resize(charge, charge.full)
        else:
            charge = self._charge(request.kind, request.size, request.owner)
        if not request.grant(charge):
            charge.release()

    def _evict(self, charges: Iterable[Charge]) -> None:
        for charge in charges:
            if charge in self.resting:  # still: what was evicted before it may have taken it along
                self.evictions[charge.kind] += 1
                self._count_eviction[charge.kind]()
                charge.evict()

    def _charge(self, kind: Kind, size: int, owner: Owner | None) -> Charge:
        charge = Charge(self, kind, size, owner)
        self._charges[charge] = None
        self.charged[kind] += size
        self.reserves.take(label_of(owner), size)
        return charge
