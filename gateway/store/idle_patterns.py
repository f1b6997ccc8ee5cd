"""What is learned of how long functions lie idle: one row per function."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.tables import functions, idle_patterns


@dataclass(frozen=True, slots=True)
class PatternRow:
    """`pattern` is text of `Pattern.dump`; `ended_at` (Unix seconds) is when the last call ended."""

    namespace: str
    function: str
    pattern: str
    ended_at: float | None


def every(tx: Connection) -> list[PatternRow]:
    return [PatternRow(*row) for row in tx.execute(select(idle_patterns))]


def put(tx: Connection, rows: Collection[PatternRow]) -> None:
    """Write those whose function is there; one may have been deleted meanwhile."""
    there = {tuple(row) for row in tx.execute(select(functions.c.namespace, functions.c.name))}
    values = [asdict(row) for row in rows if (row.namespace, row.function) in there]
    if values:
        statement = insert(idle_patterns)
        new = {"pattern": statement.excluded.pattern, "ended_at": statement.excluded.ended_at}
        tx.execute(statement.on_conflict_do_update(index_elements=["namespace", "function"], set_=new), values)
