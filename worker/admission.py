"""Who gets memory when it is short, and who makes room for whom: a pure function of requests, what rests, and time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from worker.eviction import C, Evictable, Owner, label_of, victims
from worker.reserves import Reserves

PATIENCE_SECONDS = 1.0  # a request that has waited as long is passed no more


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
    work, or give their memory. Where none is, or none has become free for long, others that stand still go for it, but
    for those whose own request is older.
    """
    books = Reserves() if reserves is None else reserves.copy()
    open_to_all = set(map(id, books.beyond(resting)))
    blocked = False
    granted: list[R] = []
    promised: list[R] = []
    evicted: list[C] = []
    left = list(resting)
    busy = set(working)
    requests = list(requests)
    wanted = {id(request.grows) for request in requests if request.grows is not None}
    for request in requests:
        if (grows := request.grows) is not None:
            if any(victim is grows for victim in evicted):
                continue
            left = [charge for charge in left if charge is not grows]
        label = label_of(request.owner)
        if blocked and request.size > books.unused(label):
            continue
        room = free - books.kept_from(label)
        if request.size <= room:
            free -= request.size
            books.take(label, request.size)
            granted.append(request)
            busy.add(request.owner)
            continue
        whole = request.size + (grows.size if grows is not None else 0)
        overdue = now - request.since >= PATIENCE_SECONDS and whole <= reachable + books.unused(label)
        short = request.size - room - leaving
        if short > 0:
            may_go = [charge for charge in left if id(charge) in open_to_all or label_of(charge.owner) == label]
            siblings = grows is not None and (request.owner not in busy or (overdue and _is_stuck(request.owner, now)))
            chosen = victims(short, may_go, request.owner, now, siblings=siblings, wanted=wanted)
            made = sum(victim.room for victim in chosen)
            if made >= short or overdue:  # who waits long takes what there is, and the rest as it comes
                evicted += chosen
                gone = set(map(id, chosen))
                left = [charge for charge in left if id(charge) not in gone]
                for victim in chosen:
                    books.take(label_of(victim.owner), -victim.size)
                leaving += made
                short -= made
        if short <= 0:
            leaving -= request.size - max(0, room)
            free -= max(0, room)
            books.take(label, request.size)
            promised.append(request)
            busy.add(request.owner)
        elif overdue:
            blocked = True
    return Plan(granted, promised, evicted)


def _is_stuck(owner: Owner | None, now: float) -> bool:
    return owner is not None and now - owner.moved_at >= PATIENCE_SECONDS
