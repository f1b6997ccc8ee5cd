"""The ledger: what each function used, hour by hour; older hours added up to days, and old days dropped.

Sums of integers alone: milliseconds, and megabytes times billed milliseconds. Rows outlive their function.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Integer, Select, cast, delete, func, select, true
from sqlalchemy.dialects.sqlite import Insert, insert

from faas.state.tables import usage

HOUR, DAY = 3600, 86_400  # seconds


@dataclass(slots=True)
class Figures:
    """What invocations used, added up. `mb_ms`: memory size in MB times billed milliseconds.

    `errors`: those whose REPORT line has a status; `cold_starts`: those that were billed an init.
    """

    requests: int = 0
    errors: int = 0
    cold_starts: int = 0
    duration_us: int = 0
    billed_ms: int = 0
    mb_ms: int = 0
    max_memory_bytes: int = 0

    def merge(self, other: Figures) -> None:
        most = max(self.max_memory_bytes, other.max_memory_bytes)
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_memory_bytes = most


SUMS = tuple(one.name for one in fields(Figures) if one.name != "max_memory_bytes")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Figures of one function, or of what a question groups by. `hour` (or day): its start, Unix seconds."""

    namespace: str = ""
    function: str = ""
    hour: int = 0
    figures: Figures = field(default_factory=Figures)


class By(enum.StrEnum):
    """What a question adds up by."""

    FUNCTION = "function"
    NAMESPACE = "namespace"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """From `start` up to, not including, `end` (Unix seconds); of one namespace and function where given."""

    start: int
    end: int
    namespace: str = ""
    function: str = ""
    by: By = By.FUNCTION


def add(tx: Connection, rows: Collection[UsageRow]) -> None:
    """Add to what is there: one statement, however many rows."""
    values = [
        {"namespace": row.namespace, "function": row.function, "hour": row.hour, **asdict(row.figures)} for row in rows
    ]
    tx.execute(_adding(insert(usage)), values)


def find(tx: Connection, query: UsageQuery) -> list[UsageRow]:
    """In the order of what it is grouped by."""
    table = usage.c
    day = (table.hour - table.hour % DAY).label("hour")
    groups: dict[By, tuple[ColumnElement[Any], ...]] = {
        By.FUNCTION: (table.namespace, table.function),
        By.NAMESPACE: (table.namespace,),
        By.DAY: (day,),
    }
    keys = groups[query.by]
    asked = select(*keys, *_totals()).where(table.hour >= query.start, table.hour < query.end)
    if query.namespace:
        asked = asked.where(table.namespace == query.namespace)
    if query.function:
        asked = asked.where(table.function == query.function)
    found = []
    for row in tx.execute(asked.group_by(*keys).order_by(*keys)).mappings():
        figures = Figures(**{one.name: row[one.name] for one in fields(Figures)})
        found.append(UsageRow(row.get("namespace", ""), row.get("function", ""), row.get("hour", 0), figures))
    return found


def totals(tx: Connection, start: int, end: int) -> dict[tuple[str, str], tuple[int, int]]:
    """(namespace, function) → (requests, mb_ms) from `start` up to `end`."""
    table = usage.c
    asked = select(table.namespace, table.function, func.sum(table.requests), func.sum(table.mb_ms))
    asked = asked.where(table.hour >= start, table.hour < end)
    rows = tx.execute(asked.group_by(table.namespace, table.function))
    return {(namespace, function): (requests, mb_ms) for namespace, function, requests, mb_ms in rows}


def roll_up(tx: Connection, before: int) -> None:
    """Add the hours of days before `before` (a day's start) to those days. A day's row is its first hour's."""
    table = usage.c
    old = (table.hour < before, table.hour % DAY != 0)
    day = cast(table.hour - table.hour % DAY, Integer).label("hour")
    days: Select[Any] = select(table.namespace, table.function, day, *_totals()).where(*old)
    names = ["namespace", "function", "hour", *(one.name for one in fields(Figures))]
    added = insert(usage).from_select(names, days.group_by(table.namespace, table.function, day).having(true()))
    tx.execute(_adding(added))
    tx.execute(delete(usage).where(*old))


def drop(tx: Connection, before: int) -> None:
    tx.execute(delete(usage).where(usage.c.hour < before))


def _totals() -> list[ColumnElement[Any]]:
    sums: list[ColumnElement[Any]] = [func.sum(usage.c[name]).label(name) for name in SUMS]
    return [*sums, func.max(usage.c.max_memory_bytes).label("max_memory_bytes")]


def _adding(statement: Insert) -> Insert:
    """Where the row is there already, add to it."""
    new, old = statement.excluded, usage.c
    changes: dict[str, ColumnElement[Any]] = {name: old[name] + new[name] for name in SUMS}
    changes["max_memory_bytes"] = func.max(old.max_memory_bytes, new.max_memory_bytes)
    return statement.on_conflict_do_update(index_elements=["namespace", "function", "hour"], set_=changes)
