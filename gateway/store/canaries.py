"""Canaries: the second revisions of aliases, and those that were taken back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Row

from faas.state.session import Transaction
from faas.state.tables import canaries
from gateway.edge.canary.rule import Canary, limits


def _canary(row: Row[Any]) -> Canary:
    return Canary(
        row.id,
        row.number,
        row.percent,
        row.sticky,
        row.override,
        limits(row.limits),
        row.began_at,
        row.ended_at,
        row.reason,
    )


async def every(tx: Transaction) -> dict[tuple[str, str], dict[str, Canary]]:
    """(namespace, function) → alias → canary."""
    found: dict[tuple[str, str], dict[str, Canary]] = {}
    for row in await tx.execute(select(canaries)):
        found.setdefault((row.namespace, row.function), {})[row.alias] = _canary(row)
    return found


async def of_function(tx: Transaction, namespace: str, function: str) -> dict[str, Canary]:
    chosen = select(canaries).where(canaries.c.namespace == namespace, canaries.c.function == function)
    return {row.alias: _canary(row) for row in await tx.execute(chosen)}


async def put(tx: Transaction, namespace: str, function: str, alias: str, canary: Canary) -> None:
    """Write it, in place of another of this alias."""
    values = {
        "id": canary.id,
        "number": canary.number,
        "percent": canary.percent,
        "sticky": canary.sticky,
        "override": canary.override,
        "limits": str(canary.limits or ""),
        "began_at": canary.began_at,
        "ended_at": canary.ended_at,
        "reason": canary.reason,
    }
    row = {"namespace": namespace, "function": function, "alias": alias, **values}
    await tx.execute(insert(canaries).values(row).on_conflict_do_update(set_=values))


async def remove(tx: Transaction, namespace: str, function: str, alias: str) -> None:
    table = canaries.c
    await tx.execute(
        delete(canaries).where(table.namespace == namespace, table.function == function, table.alias == alias)
    )
