"""Folder triggers, and the files that each has dealt with, in the very state in which it did."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, tuple_
from sqlalchemy.dialects.sqlite import insert

from faas.spec import TriggerSpec
from faas.state.session import Transaction
from faas.state.tables import trigger_files, triggers


@dataclass(frozen=True, slots=True)
class TriggerRow:
    namespace: str
    function: str
    spec: TriggerSpec


@dataclass(frozen=True, slots=True)
class SeenFile:
    """A file of a watched folder: its name, and the state that makes it this file and no other."""

    name: str
    mtime_ns: int
    size: int


async def every(tx: Transaction) -> list[TriggerRow]:
    rows = await tx.execute(select(triggers).order_by(triggers.c.namespace, triggers.c.function))
    return [TriggerRow(row.namespace, row.function, TriggerSpec(row.watch, row.pattern)) for row in rows]


async def replace(
    tx: Transaction, namespace: str, function: str, specs: Collection[TriggerSpec], now: float
) -> list[TriggerRow]:
    """Make a function's triggers exactly `specs`; returns those that are new."""
    table = triggers.c
    mine = (table.namespace == namespace, table.function == function)
    wanted = [(spec.watch, spec.pattern) for spec in specs]
    await tx.execute(delete(triggers).where(*mine, tuple_(table.watch, table.pattern).not_in(wanted)))
    new = []
    for spec in specs:
        key = {"namespace": namespace, "function": function, "watch": spec.watch, "pattern": spec.pattern}
        written = await tx.execute(insert(triggers).values(key | {"created_at": now}).on_conflict_do_nothing())
        if written.rowcount:
            new.append(TriggerRow(namespace, function, spec))
    return new


async def seen(tx: Transaction, row: TriggerRow) -> set[SeenFile]:
    table = trigger_files.c
    rows = await tx.execute(select(table.name, table.mtime_ns, table.size).where(*_of(row)))
    return {SeenFile(*found) for found in rows}


async def see(tx: Transaction, row: TriggerRow, file: SeenFile) -> bool:
    """Remember that `file` has been dealt with; whether that was new."""
    values = {
        "namespace": row.namespace,
        "function": row.function,
        "watch": row.spec.watch,
        "pattern": row.spec.pattern,
        "name": file.name,
        "mtime_ns": file.mtime_ns,
        "size": file.size,
    }
    written = await tx.execute(insert(trigger_files).values(values).on_conflict_do_nothing())
    return bool(written.rowcount)


async def forget(tx: Transaction, row: TriggerRow, files: Iterable[SeenFile]) -> None:
    """Files that are gone."""
    table = trigger_files.c
    for file in files:
        await tx.execute(
            delete(trigger_files).where(
                *_of(row), table.name == file.name, table.mtime_ns == file.mtime_ns, table.size == file.size
            )
        )


def _of(row: TriggerRow) -> tuple[ColumnElement[bool], ...]:
    table = trigger_files.c
    return (
        table.namespace == row.namespace,
        table.function == row.function,
        table.watch == row.spec.watch,
        table.pattern == row.spec.pattern,
    )
