"""Aliases: names of a function that each lead to one of its revisions."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import aliases
from gateway.store import canaries


async def every(tx: Transaction) -> dict[tuple[str, str], dict[str, int]]:
    """(namespace, function) → alias → number."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in await tx.execute(select(aliases)):
        found.setdefault((row.namespace, row.function), {})[row.name] = row.number
    return found


async def of_function(tx: Transaction, namespace: str, function: str) -> dict[str, int]:
    chosen = select(aliases).where(aliases.c.namespace == namespace, aliases.c.function == function)
    return {row.name: row.number for row in await tx.execute(chosen)}


async def named(tx: Transaction, namespace: str, function: str) -> set[int]:
    """The revisions that stand behind an alias, canaries included."""
    second = (await canaries.of_function(tx, namespace, function)).values()
    return {*(await of_function(tx, namespace, function)).values(), *(canary.number for canary in second)}


async def point(tx: Transaction, namespace: str, function: str, name: str, number: int) -> None:
    """Make the alias, or move it; it leads to this one revision then, whole."""
    await canaries.remove(tx, namespace, function, name)
    row = {"namespace": namespace, "function": function, "name": name, "number": number}
    await tx.execute(insert(aliases).values(row).on_conflict_do_update(set_={"number": number}))


async def remove(tx: Transaction, namespace: str, function: str, name: str) -> None:
    table = aliases.c
    await tx.execute(
        delete(aliases).where(table.namespace == namespace, table.function == function, table.name == name)
    )
