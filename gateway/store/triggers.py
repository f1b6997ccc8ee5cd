"""Folder triggers, and the files that each has dealt with, in the very state in which it did."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, literal, select, true, tuple_
from sqlalchemy.dialects.sqlite import insert

from faas.spec import TriggerSpec
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


def every(tx: Connection) -> list[TriggerRow]:
    rows = tx.execute(select(triggers).order_by(triggers.c.namespace, triggers.c.function))
    return [TriggerRow(row.namespace, row.function, TriggerSpec(row.watch, row.pattern)) for row in rows]


def replace(
    tx: Connection, namespace: str, function: str, specs: Collection[TriggerSpec], now: float
) -> list[TriggerRow]:
    """Make a function's triggers exactly `specs`; returns those that are new."""
    table = triggers.c
    mine = (table.namespace == namespace, table.function == function)
    wanted = [(spec.watch, spec.pattern) for spec in specs]
    tx.execute(delete(triggers).where(*mine, tuple_(table.watch, table.pattern).not_in(wanted)))
    new = []
    for spec in specs:
        key = {"namespace": namespace, "function": function, "watch": spec.watch, "pattern": spec.pattern}
        written = tx.execute(insert(triggers).values(key | {"created_at": now}).on_conflict_do_nothing())
        if written.rowcount:
            new.append(TriggerRow(namespace, function, spec))
    return new


def seen(tx: Connection, row: TriggerRow) -> set[SeenFile]:
    table = trigger_files.c
    rows = tx.execute(select(table.name, table.mtime_ns, table.size).where(*_of(row)))
    return {SeenFile(*found) for found in rows}


def see(tx: Connection, row: TriggerRow, files: Collection[SeenFile]) -> set[SeenFile]:
    """Remember that the files have been dealt with; those for which that was new. One statement, however many."""
    table = trigger_files.c
    trigger = (literal(text) for text in (row.namespace, row.function, row.spec.watch, row.spec.pattern))
    given = select(*trigger, *_columns(files)).where(true())
    written = tx.execute(
        insert(trigger_files)
        .from_select([column.name for column in table], given)
        .on_conflict_do_nothing()
        .returning(table.name, table.mtime_ns, table.size)
    )
    return {SeenFile(*found) for found in written}


def forget(tx: Connection, row: TriggerRow, files: Collection[SeenFile]) -> None:
    """Files that are gone."""
    table = trigger_files.c
    state = tuple_(table.name, table.mtime_ns, table.size)
    tx.execute(delete(trigger_files).where(*_of(row), state.in_(select(*_columns(files)))))


def _columns(files: Collection[SeenFile]) -> list[ColumnElement[Any]]:
    """Names, times and sizes, as columns of a table of the files."""
    rows = json.dumps([[file.name, file.mtime_ns, file.size] for file in files])
    value = func.json_each(rows).table_valued("value").c.value
    return [func.json_extract(value, f"$[{place}]") for place in range(3)]


def _of(row: TriggerRow) -> tuple[ColumnElement[bool], ...]:
    table = trigger_files.c
    return (
        table.namespace == row.namespace,
        table.function == row.function,
        table.watch == row.spec.watch,
        table.pattern == row.spec.pattern,
    )
