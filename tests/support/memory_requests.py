"""What the decisions about memory look at, as plain values; and a pool in which no time passes for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from faas.protocol import Kind
from worker.pool import Pool


@dataclass(eq=False)
class AnOwner:
    label: str = "hello"
    provisioned: int = 0
    moved_at: float = 0.0


@dataclass(eq=False)
class Resting:
    size: int
    owner: AnOwner | None = field(default_factory=AnOwner)
    rested_at: float = 0.0
    start_seconds: float = 1.0
    kind: Kind = Kind.INVOKED
    is_shrunk: bool = False
    yields: int = 0

    @property
    def room(self) -> int:
        return self.size - self.yields


@dataclass(eq=False)
class Wanted:
    size: int
    since: float = 0.0
    owner: AnOwner | None = field(default_factory=AnOwner)
    grows: Resting | None = None


def nobodys_patience_ends(pool: Pool) -> None:
    """However long the machine stands still, nobody has waited for memory for longer than until now."""
    now = pool._ledger.clock()
    pool._ledger.clock = lambda: now
