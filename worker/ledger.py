"""One memory ledger for the machine: what every instance is charged, who waits for memory, who makes room for whom.

Nothing starts before its memory is charged, and all charges together never exceed the budget. An instance is charged
its limit from before its start until its processes are dead: while it is idle too, since nothing stops it from growing
up to that limit then. An idle one is evicted as soon as somebody needs its memory.

Who asks for more than is free waits, first come first served. A smaller request may pass one that does not fit, but
only for `PATIENCE_SECONDS`: from then on whatever becomes free is kept for the older one. `plan` decides, purely;
`Ledger` holds the books and carries it out.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from faas.errors import FaasError, Throttled
from faas.metrics import Metrics
from faas.protocol import NO_MEMORY, Kind
from worker.eviction import C, Owner, unprotected, victims

MEGABYTE = 1_048_576
PATIENCE_SECONDS = 1.0  # a request that has waited as long is passed no more
TIMER_SLACK = 0.01  # s: a loop's timer may be early by its clock's grain


class Asked(Protocol):
    """What the decision looks at of a request. `since` is when it was made."""

    @property
    def owner(self) -> Owner | None: ...
    @property
    def size(self) -> int: ...
    @property
    def since(self) -> float: ...


R = TypeVar("R", bound=Asked)


@dataclass(frozen=True)
class Plan(Generic[R, C]):
    """`granted` fit now; `promised` will, when what is evicted here or ends already has ended."""

    granted: Sequence[R]
    promised: Sequence[R]
    evicted: Sequence[C]


def plan(
    requests: Iterable[R], resting: Sequence[C], free: int, leaving: int, reachable: int, now: float
) -> Plan[R, C]:
    """Who gets memory, and who makes room for it. Pure.

    `requests`: the oldest first. `resting`: what may be evicted. Bytes: `free` now, `leaving` with instances that are
    on their way out, `reachable` at most once everything that ends has ended. `now` in the seconds of `since`.
    """
    granted: list[R] = []
    promised: list[R] = []
    evicted: list[C] = []
    left = list(resting)
    for request in requests:
        if request.size <= free:
            free -= request.size
            granted.append(request)
            continue
        overdue = now - request.since >= PATIENCE_SECONDS and request.size <= reachable
        short = request.size - free - leaving
        if short > 0:
            chosen = victims(short, left, request.owner, now)
            room = sum(victim.size for victim in chosen)
            if room >= short or overdue:  # who waits long takes what there is, and the rest as it comes
                evicted += chosen
                gone = set(map(id, chosen))
                left = [charge for charge in left if id(charge) not in gone]
                leaving += room
                short -= room
        if short <= 0:
            leaving -= request.size - free
            free = 0
            promised.append(request)
        elif overdue:
            break
    return Plan(granted, promised, evicted)


class _State(enum.Enum):
    HELD = enum.auto()
    RESTING = enum.auto()
    LEAVING = enum.auto()
    RELEASED = enum.auto()


class Charge:
    """Memory that somebody has. Give it back with `release`, or use it as a context manager."""

    __slots__ = ("_evict", "_ledger", "_state", "kind", "owner", "rested_at", "size", "start_seconds")

    def __init__(self, ledger: Ledger, kind: Kind, size: int, owner: Owner | None) -> None:
        self.kind = kind
        self.size = size
        self.owner = owner
        self.rested_at = 0.0
        self.start_seconds = 0.0
        self._ledger = ledger
        self._evict: Callable[[], None] | None = None
        self._state = _State.HELD

    def may_be_evicted(self, evict: Callable[[], None], start_seconds: float) -> None:
        """From here on whenever it rests. `evict` ends what has the memory, which then gives it back; it took
        `start_seconds` to start."""
        self._evict = evict
        self.start_seconds = start_seconds

    def rest(self) -> None:
        """What has it is idle. Costs two entries of a dict on each invocation's way out, and no look at who waits."""
        if self._state is _State.HELD and self._evict is not None:
            self._state = _State.RESTING
            self.rested_at = self._ledger.clock()
            self._ledger.resting[self] = None

    def use(self) -> None:
        """It is in use again."""
        if self._state is _State.RESTING:
            self._state = _State.HELD
            del self._ledger.resting[self]

    def leave(self) -> None:
        """What has it is being ended."""
        if self._state in (_State.HELD, _State.RESTING):
            self.use()
            self._state = _State.LEAVING
            self._ledger.left(self)

    @property
    def leaving(self) -> bool:
        return self._state is _State.LEAVING

    @property
    def held(self) -> int:
        """Bytes; 0 once it is given back."""
        return 0 if self._state is _State.RELEASED else self.size

    def evict(self) -> None:
        """Have what has it ended, for whoever waits."""
        assert self._evict is not None
        self.leave()
        self._evict()

    def release(self) -> None:
        """It is free again. Said twice, it counts once."""
        if self._state is not _State.RELEASED:
            self.leave()
            self._state = _State.RELEASED
            self._ledger.released(self)

    def __enter__(self) -> Charge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Request:
    """Somebody waits for memory. `promised`: it is being made free."""

    __slots__ = ("_future", "_ledger", "kind", "lost", "owner", "promised", "since", "size", "timer")

    def __init__(self, ledger: Ledger, kind: Kind, size: int, owner: Owner | None, lost: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.kind = kind
        self.size = size
        self.owner = owner
        self.since = ledger.clock()
        self.promised = False
        self.lost = lost
        self.timer = loop.call_later(PATIENCE_SECONDS + TIMER_SLACK, ledger.settle)  # it is passed no more
        self._ledger = ledger
        self._future: asyncio.Future[Charge] = loop.create_future()

    async def charge(self, wait_seconds: float | None = None) -> Charge:
        """The memory, once it is there. Raises Throttled after `wait_seconds`; None: it waits until it is cancelled."""
        try:
            async with asyncio.timeout(wait_seconds):
                return await self._future
        except BaseException as error:
            self._withdraw()
            if isinstance(error, TimeoutError):
                raise self._ledger.refusal(self.size, wait_seconds) from None
            raise

    def _withdraw(self) -> None:
        future = self._future
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()  # it came together with the end of the wait
        self._ledger.forget(self)

    def grant(self, charge: Charge) -> bool:
        """Whether it was still wanted."""
        self.timer.cancel()
        if self._future.done():
            return False
        self.promised = True
        self._future.set_result(charge)
        return True

    def refuse(self, error: FaasError) -> None:
        self.timer.cancel()
        if not self._future.done():
            self._future.set_exception(error)
            self._future.exception()  # seen: whoever waited may have gone


class Ledger:
    """The books. `clock` gives seconds, monotonic. One event loop's: nothing here is for threads."""

    def __init__(self, budget: int, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self.clock = clock
        self.charged = dict.fromkeys(Kind, 0)  # bytes
        self.evictions = dict.fromkeys(Kind, 0)
        self.resting: dict[Charge, None] = {}
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

    @property
    def overdue(self) -> bool:
        """Whether somebody waits so long that an instance which has just become idle is theirs."""
        oldest = next(iter(self._queue), None)
        return oldest is not None and self.clock() - oldest.since >= PATIENCE_SECONDS

    def ask(
        self, kind: Kind, size: int, owner: Owner | None = None, lost: Callable[[], None] = lambda: None
    ) -> Request:
        """A place in the queue for `size` bytes; await its `charge`. `lost` is called where it was promised, and is not
        any more. Raises Throttled on more than the whole budget."""
        if size > self.budget:
            raise self.refusal(size)
        request = Request(self, kind, size, owner, lost)
        self._queue[request] = None
        self.settle()
        return request

    def try_charge(self, kind: Kind, size: int, owner: Owner | None = None) -> Charge | None:
        """`size` bytes if they are free and nobody waits for them: nobody makes room for it."""
        if self._queue or size > self.free:
            return None
        return self._charge(kind, size, owner)

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
        return Throttled(
            f"no memory was free{within}: {size // MEGABYTE} MB are wanted, and {budget} are in use",
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
        self.settle()

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

    def _plan(self) -> Plan[Request, Charge]:
        held: dict[Owner, int] = {}
        pinned = 0  # by what need not end
        for charge in self._charges:
            if charge.kind in (Kind.JOB, Kind.SERVICE):
                pinned += charge.size
            elif charge.owner is not None and not charge.leaving:
                held[charge.owner] = held.get(charge.owner, 0) + 1
                if held[charge.owner] <= charge.owner.provisioned:
                    pinned += charge.size
        may_go = unprotected(self.resting, held)
        return plan(self._queue, may_go, self.free, self._leaving, self.budget - pinned, self.clock())

    def _carry_out(self, made: Plan[Request, Charge]) -> None:
        before = [request for request in self._queue if request.promised]
        for request in before:
            request.promised = False
        for request in made.promised:
            request.promised = True
        for request in made.granted:
            del self._queue[request]
            charge = self._charge(request.kind, request.size, request.owner)
            if not request.grant(charge):
                charge.release()
        for charge in made.evicted:
            if charge in self.resting:  # still: what was evicted before it may have taken it along
                self.evictions[charge.kind] += 1
                self._count_eviction[charge.kind]()
                charge.evict()
        for request in before:
            if request in self._queue and not request.promised:
                request.lost()

    def _charge(self, kind: Kind, size: int, owner: Owner | None) -> Charge:
        charge = Charge(self, kind, size, owner)
        self._charges[charge] = None
        self.charged[kind] += size
        return charge
