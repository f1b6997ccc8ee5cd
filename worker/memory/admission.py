"""Who gets memory when it is short, and who makes room for whom: a pure function of requests, what rests, and time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from worker.memory.eviction import C, Evictable, Owner, label_of, victims
from worker.memory.reserves import Reserves

PATIENCE_SECONDS = 1.0  # a request that has waited as long is passed no more
LASTING_SECONDS = 2.0  # a queue that moves, but has lasted as long, is worth idle instances that find no room to run


class Asked(Protocol):
    """What the decision looks at of a request. `since` is when it was made."""

    @property
    def owner(self) -> Owner | None: ...
    @property
    def size(self) -> int: ...
    @property
    def since(self) -> float: ...
    @property
    def grows(self) -> Evictable | None:
        """The charge that this is the rest of: of an instance that stands still, and is to go on."""
        ...


R = TypeVar("R", bound=Asked)


@dataclass(frozen=True)
class Plan(Generic[R, C]):
    """`granted` fit now; `promised` will, when what is evicted here or ends already has ended."""

    granted: Sequence[R]
    promised: Sequence[R]
    evicted: Sequence[C]


def plan(
    requests: Iterable[R],
    resting: Sequence[C],
    free: int,
    leaving: int,
    reachable: int,
    now: float,
    reserves: Reserves | None = None,
    working: Iterable[Owner | None] = (),
) -> Plan[R, C]:
    """Who gets memory, and who makes room for it. Pure.

    `requests`: the oldest first. `resting`: what may be evicted. Bytes: `free` now, `leaving` with instances that are
    on their way out, `reachable` at most once everything that ends has ended. `now` in the seconds of `since`. What
    `reserves` keeps for a function comes before every order; nobody else gets it, not by an eviction either.

    An instance that is to go on waits for those of its revision that are `working`: they will soon be free for its
    work, or give their memory. Where none is, or none has become free for long, or it has waited twice as long, others
    that stand still go for it, but for those whose own request is older.
    """
    requests = list(requests)
    draft: _Draft[R, C] = _Draft(requests, resting, free, leaving, reachable, now, reserves, working)
    for request in requests:
        draft.consider(request)
    return Plan(draft.granted, draft.promised, draft.evicted)


class _Draft(Generic[R, C]):
    """A plan in the making, one request after the other; arguments as `plan`'s."""

    def __init__(
        self,
        requests: Sequence[R],
        resting: Sequence[C],
        free: int,
        leaving: int,
        reachable: int,
        now: float,
        reserves: Reserves | None,
        working: Iterable[Owner | None],
    ) -> None:
        self.granted: list[R] = []
        self.promised: list[R] = []
        self.evicted: list[C] = []
        self._free = free
        self._leaving = leaving
        self._reachable = reachable
        self._now = now
        self._books = Reserves() if reserves is None else reserves.copy()
        self._left = list(resting)  # what may be evicted yet
        self._open_to_all = set(map(id, self._books.beyond(resting)))
        self._busy = set(working)
        self._wanted = {id(request.grows) for request in requests if request.grows is not None}
        self._blocked = False  # somebody has waited long: nobody passes

    def consider(self, request: R) -> None:
        if request.grows is not None:
            if any(victim is request.grows for victim in self.evicted):
                return
            self._left = [charge for charge in self._left if charge is not request.grows]
        label = label_of(request.owner)
        if self._blocked and request.size > self._books.unused(label):
            return
        room = self._free - self._books.kept_from(label)
        if request.size <= room:
            self._free -= request.size
            self._give(request, self.granted)
            return
        overdue = self._is_overdue(request, label)
        short = request.size - room - self._leaving
        if short > 0:
            short -= self._make_room(request, label, short, overdue)
        if short <= 0:
            self._leaving -= request.size - max(0, room)
            self._free -= max(0, room)
            self._give(request, self.promised)
        elif overdue:
            self._blocked = True

    def _is_overdue(self, request: R, label: str) -> bool:
        """Whether it has waited long for what can be had at all."""
        whole = request.size + (request.grows.size if request.grows is not None else 0)
        waited = self._now - request.since >= PATIENCE_SECONDS
        return waited and whole <= self._reachable + self._books.unused(label)

    def _make_room(self, request: R, label: str, short: int, overdue: bool) -> int:
        """Evict for `request` where that helps; the bytes that it makes free."""
        owner = request.owner
        may_go = [charge for charge in self._left if id(charge) in self._open_to_all or label_of(charge.owner) == label]
        siblings = request.grows is not None and (
            owner not in self._busy
            or (overdue and (_is_stuck(owner, self._now) or self._now - request.since >= LASTING_SECONDS))
        )
        chosen = victims(short, may_go, owner, self._now, siblings=siblings, wanted=self._wanted)
        room = sum(victim.room for victim in chosen)
        if room < short and not overdue:  # who waits long takes what there is, and the rest as it comes
            return 0
        self.evicted += chosen
        gone = set(map(id, chosen))
        self._left = [charge for charge in self._left if id(charge) not in gone]
        for victim in chosen:
            self._books.take(label_of(victim.owner), -victim.size)
        self._leaving += room
        return room

    def _give(self, request: R, to: list[R]) -> None:
        self._books.take(label_of(request.owner), request.size)
        self._busy.add(request.owner)
        to.append(request)


def _is_stuck(owner: Owner | None, now: float) -> bool:
    return owner is not None and now - owner.moved_at >= PATIENCE_SECONDS
