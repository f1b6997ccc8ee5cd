"""What became of the last push of the tag that a function follows: one row per function."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from faas.oci.changes import TagChange
from faas.state.session import Transaction
from faas.state.tables import follows


class FollowState(enum.StrEnum):
    DEPLOYED = "deployed"  # it is, or was already, the live image
    FAILED = "failed"  # for good: the next push is the next try
    RETRYING = "retrying"
    SKIPPED = "skipped"  # `live` was moved by hand while it was to be tried again


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the push that made `tag` name `digest` at `moved_at`; `at` is when that was found out (Unix seconds)."""

    tag: str
    digest: str
    moved_at: float
    state: FollowState
    error: str
    at: float

    def ends(self, change: TagChange) -> bool:
        """Whether this change is dealt with. Its id says nothing here: the registry's database may be another one."""
        same = (self.tag, self.digest, self.moved_at) == (change.tag, change.digest, change.changed_at)
        return same and self.state is not FollowState.RETRYING


async def put(tx: Transaction, namespace: str, function: str, outcome: Outcome) -> None:
    values = dataclasses.asdict(outcome)
    row = insert(follows).values(namespace=namespace, function=function, **values)
    await tx.execute(row.on_conflict_do_update(index_elements=["namespace", "function"], set_=values))


async def get(tx: Transaction, namespace: str, function: str) -> Outcome | None:
    chosen = select(follows).where(follows.c.namespace == namespace, follows.c.function == function)
    row = (await tx.execute(chosen)).first()
    if row is None:
        return None
    return Outcome(row.tag, row.digest, row.moved_at, FollowState(row.state), row.error, row.at)
