"""Which idle instances go when somebody needs their memory: pure functions of what rests and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


class Evictable(Protocol):
    """What the decision looks at of a charge that may be evicted."""

    @property
    def kind(self) -> Kind: ...
    @property
    def owner(self) -> Owner | None: ...
    @property
    def size(self) -> int: ...
    @property
    def rested_at(self) -> float: ...
    @property
    def start_seconds(self) -> float: ...


C = TypeVar("C", bound=Evictable)


def victims(short: int, resting: Sequence[C], owner: Owner | None, now: float) -> list[C]:
    """The cheapest charges to lose that free `short` bytes, or all that may be evicted where they do not.

    Stems first, then other functions' instances, then older revisions of the same one; among them by `loss`. Never
    one of the owner itself: to start an instance of what is idle would be folly.
    """
    own_label = owner.label if owner is not None else None

    def order(charge: C) -> tuple[bool, bool, float]:
        related = charge.owner is not None and charge.owner.label == own_label
        return charge.kind is not Kind.STEM, related, loss(charge, now)

    foreign = [charge for charge in resting if charge.owner is None or charge.owner is not owner]
    chosen: list[C] = []
    room = 0
    for charge in sorted(foreign, key=order):
        if room >= short:
            break
        chosen.append(charge)
        room += charge.size
    for charge in list(chosen):  # a large one that came last makes smaller ones before it needless: the dearest stay
        if charge is not chosen[-1] and room - charge.size >= short:
            chosen.remove(charge)
            room -= charge.size
    return chosen


def loss(charge: Evictable, now: float) -> float:
    """What its eviction costs: seconds of a start, per byte, the less likely to be needed the longer it has rested.

    Greedy-Dual-Size-Frequency as FaasCache (ASPLOS 2021) uses it for instances, with recency for frequency.
    """
    idle = max(now - charge.rested_at, SECONDS_LEAST)
    return max(charge.start_seconds, SECONDS_LEAST) / (charge.size * idle)


def unprotected(resting: Iterable[C], held: Mapping[Owner, int]) -> list[C]:
    """Of each owner's resting charges those that lie above its provisioned number, of `held` in all; the longest
    unused first. Pure."""
    spare = {owner: count - owner.provisioned for owner, count in held.items()}
    found: list[C] = []
    for charge in sorted(resting, key=lambda charge: charge.rested_at):
        if charge.owner is not None:
            if spare.get(charge.owner, 0) <= 0:
                continue
            spare[charge.owner] -= 1
        found.append(charge)
    return found
