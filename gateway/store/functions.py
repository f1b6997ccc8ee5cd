"""Functions as rows: that they exist, since when, and the numbers of their revisions."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import functions, revision_numbers


class FunctionRow(NamedTuple):
    """Times are Unix seconds."""

    namespace: str
    name: str
    created_at: float
    updated_at: float


async def every(tx: Transaction) -> list[FunctionRow]:
    rows = await tx.execute(select(functions).order_by(functions.c.namespace, functions.c.name))
    return [FunctionRow._make(row) for row in rows]


async def touch(tx: Transaction, namespace: str, name: str, now: float) -> None:
    """Make the row, or say that it changed."""
    row = {"namespace": namespace, "name": name, "created_at": now, "updated_at": now}
    await tx.execute(insert(functions).values(row).on_conflict_do_update(set_={"updated_at": now}))


async def remove(tx: Transaction, namespace: str, name: str) -> None:
    """Remove the row and, by its foreign keys, revisions, aliases, schedules and triggers."""
    await tx.execute(delete(functions).where(functions.c.namespace == namespace, functions.c.name == name))


async def next_number(tx: Transaction, namespace: str, name: str) -> int:
    """The next revision's number: never given twice, even where a deploy fails or the function is deleted."""
    table = revision_numbers
    row = {"namespace": namespace, "function": name, "last": 0}
    await tx.execute(insert(table).values(row).on_conflict_do_nothing())
    number = await tx.execute(
        update(table)
        .where(table.c.namespace == namespace, table.c.function == name)
        .values(last=table.c.last + 1)
        .returning(table.c.last)
    )
    return int(number.scalar_one())


async def get(tx: Transaction, namespace: str, name: str) -> FunctionRow | None:
    found = await tx.execute(select(functions).where(functions.c.namespace == namespace, functions.c.name == name))
    row = found.first()
    return FunctionRow(*row) if row else None
