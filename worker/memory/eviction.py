"""Which idle instances go when somebody needs their memory: pure functions of what rests and the time."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from faas.protocol import Kind

SECONDS_LEAST = 0.001  # of a start and of a rest: neither may make an instance cost nothing to lose, or everything


class Owner(Protocol):
    """Whose charges they are: the instances of one revision. Compared by identity."""

    @property
    def label(self) -> str: ...

    @property
    def provisioned(self) -> int:
        """So many of its instances are never evicted."""
        ...

    @property
    def moved_at(self) -> float:
        """When one of its instances became free last."""
        ...


def label_of(owner: Owner | None) -> str:
    return "" if owner is None else owner.label


class Evictable(Protocol):
    """What the decision looks at of a charge that may be evicted."""

    @property
    def kind(self) -> Kind: ...
    @property
    def owner(self) -> Owner | None: ...
    @property
    def size(self) -> int: ...
    @property
    def room(self) -> int:
        """What its eviction gives."""
        ...

    @property
    def is_shrunk(self) -> bool:
        """It stands still, and is charged no more than it has."""
        ...

    @property
    def rested_at(self) -> float: ...
    @property
    def start_seconds(self) -> float: ...


C = TypeVar("C", bound=Evictable)


def victims(
    short: int,
    resting: Sequence[C],
    owner: Owner | None,
    now: float,
    *,
    siblings: bool = False,
    wanted: Container[int] = (),
) -> list[C]:
    """The cheapest charges to lose that free `short` bytes, or all that may be evicted where they do not.

    Stems first, then other functions' instances, then older revisions of the same one; among them by `loss`. Never
    one of the owner itself: to start an instance of what is idle would be folly. But where one that stands still is to
    go on, its `siblings` that stand still may go, as the last. `wanted`, by identity: somebody waits for them too, so
    they go only where nothing else is left.
    """
    own_label = owner.label if owner is not None else None

    def order(charge: C) -> tuple[bool, bool, bool, bool, float]:
        related = charge.owner is not None and charge.owner.label == own_label
        own = related and charge.owner is owner
        return charge.kind is not Kind.STEM, id(charge) in wanted, related, own, loss(charge, now)

    def may_go(charge: C) -> bool:
        return charge.owner is None or charge.owner is not owner or (siblings and charge.is_shrunk)

    chosen: list[C] = []
    room = 0
    for charge in sorted(filter(may_go, resting), key=order):
        if room >= short:
            break
        chosen.append(charge)
        room += charge.room
    for charge in list(chosen):  # a large one that came last makes smaller ones before it needless: the dearest stay
        if charge is not chosen[-1] and room - charge.room >= short:
            chosen.remove(charge)
            room -= charge.room
    return chosen


def loss(charge: Evictable, now: float) -> float:
    """What its eviction costs: seconds of a start, per byte, the less likely to be needed the longer it has rested.

    Greedy-Dual-Size-Frequency as FaasCache (ASPLOS 2021) uses it for instances, with recency for frequency.
    """
    idle = max(now - charge.rested_at, SECONDS_LEAST)
    return max(charge.start_seconds, SECONDS_LEAST) / (max(charge.room, 1) * idle)


def unprotected(resting: Iterable[C], held: Mapping[Owner, int]) -> list[C]:
    """Of each owner's resting charges those that lie above its provisioned number, of `held` in all; the longest
    unused first, and those that are shrunk before those that are ready at once. Pure."""
    spare = {owner: count - owner.provisioned for owner, count in held.items()}
    found: list[C] = []
    for charge in sorted(resting, key=lambda charge: (not charge.is_shrunk, charge.rested_at)):
        if charge.owner is not None:
            if spare.get(charge.owner, 0) <= 0:
                continue
            spare[charge.owner] -= 1
        found.append(charge)
    return found
