"""`LendingPool`: the worker of a server with several processes: slots of its instances are lent to lane processes.

A slot has one owner: while it is lent it is taken here, and only its lane uses it. It comes back when the lane has no
use for it, when it is needed here, and when the lane is gone. Only instances that run several invocations at once are
lent from: of one that runs a single one the log says whose lines are whose, and that takes being told before it runs.
"""

from __future__ import annotations

import errno
import itertools
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from faas.errors import FaasError, TimedOut
from faas.leases import Claim, Invocation
from faas.protocol import Door, Revision, RevisionKey
from worker.http_connection import BrokenConnection
from worker.instance import BUSY, IDLE, Instance
from worker.lease import PoolLease
from worker.pool import Pool
from worker.revision_pool import RevisionPool
from worker.slot import Slot

REST_SECONDS = 0.5  # after slots had to come back: nothing of that revision is lent
MOST_RESTING = 1024
CONNECTIONS_EACH = 4  # asked for at once, of each slot
UNTOLD = 4096  # invocations that may have begun beyond the slots: several a slot are told together
LONGEST_SECONDS = 86_400.0
MOST_SECONDS = 1e10  # of a clock
ID_CHARACTERS = 64


def share(slots: int, processes: int, held: int, free: int, most: int) -> int:
    """How many more a lane gets that holds `held` of a revision's `slots`: none has more than its part of them."""
    return max(0, min(free, most, max(1, slots // processes) - held))


@dataclass(eq=False, slots=True)
class Loan:
    """`slots` of an instance that are a lane's; `running`: what it has said of invocations in them."""

    id: int
    lane: int
    pool: RevisionPool
    instance: Instance
    slots: int
    running: dict[str, float] = field(default_factory=dict)  # since when, by the monotonic clock
    connecting: int = 0
    is_recalled: bool = False

    @property
    def key(self) -> RevisionKey:
        return self.pool.revision.key


class LendingPool(Pool):
    """`recalled` is called with a loan whose slots are to come back, as soon as each is free; `returned` with how many
    have."""

    recalled: Callable[[Loan], None] = staticmethod(lambda loan: None)
    returned: Callable[[int], None] = staticmethod(lambda slots: None)

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._numbers = itertools.count(1)
        self._loans: dict[int, Loan] = {}
        self._by_key: dict[RevisionKey, set[Loan]] = {}
        self._rest_until: dict[RevisionKey, float] = {}  # by the monotonic clock
        self._watched: WeakSet[Instance] = WeakSet()

    # Worker

    def door(self, revision: Revision) -> Door:
        door = super().door(revision)

        def asked(request_id: str) -> Claim | None:
            claim = door(request_id)
            if claim is None and self._loans:
                self._need(revision.key)
            return claim

        return asked

    def acquire(self, revision: Revision, invocation: Invocation) -> PoolLease:
        if self._loans:
            self._need(revision.key)
        return super().acquire(revision, invocation)

    async def renew(self, revision: Revision, *, running: bool) -> int:
        renewed = await super().renew(revision, running=running)
        self.look()
        return renewed

    # Lending

    @property
    def lent(self) -> int:
        """Slots."""
        return sum(loan.slots for loan in self._loans.values())

    def loans(self, lane: int | None = None) -> list[Loan]:
        """Of one lane, or all."""
        return [loan for loan in self._loans.values() if lane is None or loan.lane == lane]

    def lend(self, lane: int, revision: Revision, processes: int, most: int) -> Loan | None:
        """Slots of one instance that are free now, `most` at most; None where there are none for this lane."""
        pool = self._pools.get(revision.key)
        if pool is None or self._closing or self._rest_until.get(revision.key, 0.0) > time.monotonic():
            return None
        serving = [instance for instance in pool.every_instance if instance.state in (IDLE, BUSY)]
        held = sum(loan.slots for loan in self._by_key.get(revision.key, ()) if loan.lane == lane)
        free = sum(instance.free_slots for instance in serving)
        wanted = share(sum(instance.slots for instance in serving), processes, held, free, most)
        if not wanted or (instance := pool.try_take_ready()) is None:
            return None
        if instance.slots < 2 or instance.http is None:
            pool.release(instance)
            return None
        taken = 1
        while taken < wanted and (again := pool.try_take_ready()) is not None:
            if again is not instance:
                pool.release(again)
                break
            taken += 1
        instance.invocations -= taken  # those that come are counted as they are told
        loan = Loan(next(self._numbers), lane, pool, instance, taken)
        self._loans[loan.id] = loan
        self._by_key.setdefault(loan.key, set()).add(loan)
        if instance.sandbox is not None and instance not in self._watched:
            self._watched.add(instance)
            instance.sandbox.exited.add_done_callback(lambda exited: self.look())
        return loan

    def loan(self, lane: int, number: object) -> Loan:
        """Raises ValueError where this lane has none of that number."""
        loan = self._loans.get(number) if type(number) is int else None
        if loan is None or loan.lane != lane:
            raise ValueError("there is no such loan")
        return loan

    def recall(self, loan: Loan) -> None:
        """Have its slots come back."""
        if loan.id in self._loans and not loan.is_recalled:
            loan.is_recalled = True
            self.recalled(loan)

    def look(self) -> None:
        """Whether what is lent may still be: instances on their way out are not, nor where others wait for memory."""
        waits = bool(self._parts.ledger.waiting)
        for loan in self.loans():
            if waits or loan.instance.state not in (IDLE, BUSY) or loan.pool.retired:
                self.recall(loan)

    def _need(self, key: RevisionKey) -> None:
        """Somebody here asks for a slot of this revision."""
        loans = self._by_key.get(key)
        if not loans or any(one.free_slots for one in next(iter(loans)).pool.every_instance):
            return
        if len(self._rest_until) >= MOST_RESTING:
            self._rest_until.clear()
        self._rest_until[key] = time.monotonic() + REST_SECONDS
        for loan in list(loans):
            self.recall(loan)

    # What a lane says

    async def connect(self, loan: Loan) -> socket.socket:
        """A socket connected to the instance. Raises OSError."""
        sandbox = loan.instance.sandbox
        if sandbox is None or loan.connecting >= CONNECTIONS_EACH * max(1, loan.slots):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "no connection to this instance")
        loan.connecting += 1
        try:
            return await sandbox.connect(loan.instance.revision.spec.port)
        finally:
            loan.connecting -= 1

    def begun(self, loan: Loan, begun: Iterable[tuple[str, float]]) -> None:
        """Invocations (id, monotonic time). Raises ValueError."""
        now = time.monotonic()
        for request_id, since in begun:
            if request_id in loan.running or len(loan.running) >= loan.slots + UNTOLD:
                raise ValueError("an invocation begins twice, or there are too many")
            since = loan.running[request_id] = min(max(since, now - LONGEST_SECONDS), now)
            loan.instance.invocations += 1
            loan.instance.begin(request_id, since)

    def ended(self, loan: Loan, request_id: str, seconds: float) -> None:
        """One of them. Raises ValueError."""
        self._forget(loan, request_id)
        if not loan.instance.ended_well(request_id, seconds):
            LentSlot(loan, request_id).over(seconds, None)

    def late(self, loan: Loan, request_id: str, seconds: float) -> None:
        """One of them has taken too long: the instance goes, and what is lent of it comes back. Raises ValueError."""
        self._forget(loan, request_id)
        loan.pool.destroy(loan.instance)
        limit = loan.pool.deadlines.seconds
        LentSlot(loan, request_id).over(seconds, TimedOut(f"Task timed out after {limit:.2f} seconds"))
        self.look()

    async def broken(
        self, loan: Loan, request_id: str, seconds: float, reason: str, no_listener: bool
    ) -> BaseException:
        """The connection of one of them broke: why, as its caller is told it. Raises ValueError."""
        self._forget(loan, request_id)
        slot = LentSlot(loan, request_id)
        error = await slot.explained(BrokenConnection(reason, no_listener=no_listener))
        slot.over(seconds, error)
        self.look()
        return error

    def give_back(self, loan: Loan, slots: int) -> None:
        """So many of them are free. Raises ValueError."""
        if not 0 < slots <= loan.slots:
            raise ValueError("more slots come back than were lent")
        loan.slots -= slots
        if not loan.slots:
            del self._loans[loan.id]
            self._by_key[loan.key].discard(loan)
            if not self._by_key[loan.key]:
                del self._by_key[loan.key]
        for _ in range(slots):
            loan.pool.release(loan.instance)
        self.returned(slots)

    def lost(self, lane: int) -> int:
        """This lane is gone: what ran in its slots has failed, and they are free; how many did."""
        failed, now = 0, time.monotonic()
        for loan in self.loans(lane):
            running, loan.running = loan.running, {}
            failed += len(running)
            for request_id, since in running.items():
                error = FaasError("the process that served this request has ended")
                LentSlot(loan, request_id).over(now - since, error)
            self.give_back(loan, loan.slots)
        return failed

    @staticmethod
    def _forget(loan: Loan, request_id: str) -> None:
        if loan.running.pop(request_id, None) is None:
            raise ValueError("an invocation ends that has not begun")


class LentSlot(Slot):
    """A lent one, for what its invocation's end has to say."""

    def __init__(self, loan: Loan, request_id: str) -> None:
        super().__init__(loan.pool, request_id)
        self._instance = loan.instance

    async def explained(self, broken: BrokenConnection) -> BaseException:
        return await self._translated(broken)

    def over(self, seconds: float, error: BaseException | None) -> None:
        self._account(seconds, error, None)


def request_id_of(told: object) -> str:
    """Raises ValueError for what is no id."""
    if not isinstance(told, str) or not 0 < len(told) <= ID_CHARACTERS or not told.isascii() or not told.isprintable():
        raise ValueError("that is no id of a request")
    return told


def seconds_of(told: Any) -> float:
    """Raises ValueError."""
    if type(told) not in (int, float) or not 0 <= told < MOST_SECONDS:
        raise ValueError("that is no time")
    return float(told)
