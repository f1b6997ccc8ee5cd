"""Targets of notifications, what each of them knows already, and what of other tables is looked at for them."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.tables import dead_letters, functions, schedule_fires, schedules
from faas.state.told import notification_states, notification_targets
from gateway.notify.subjects import Kind, Letters, ScheduleEnd, Subject
from gateway.store.schedules import MISSED

_ENDED = ("success", "error", MISSED)  # how a fire time ends; one that was skipped says nothing of the next


@dataclass(frozen=True, slots=True)
class StateRow:
    """`state`: as `gateway.notify.states.State` dumps it; None: it goes."""

    namespace: str
    target: str
    subject: Subject
    state: str | None


def targets(tx: Connection) -> list[tuple[str, str, dict[str, Any]]]:
    """(namespace, name, definition)."""
    rows = tx.execute(select(notification_targets))
    return [(row.namespace, row.name, json.loads(row.definition)) for row in rows]


def states(tx: Connection) -> list[StateRow]:
    rows = tx.execute(select(notification_states))
    return [
        StateRow(row.namespace, row.target, Subject(Kind(row.kind), row.of, row.subject), row.state) for row in rows
    ]


def put(tx: Connection, namespace: str, name: str, definition: dict[str, Any], now: float) -> None:
    values = {"namespace": namespace, "name": name, "definition": json.dumps(definition), "changed_at": now}
    tx.execute(insert(notification_targets).values(values).on_conflict_do_update(set_=values))


def remove(tx: Connection, namespace: str, name: str) -> None:
    """With all that it knew."""
    table = notification_targets.c
    tx.execute(delete(notification_targets).where(table.namespace == namespace, table.name == name))


def remember(tx: Connection, rows: Collection[StateRow]) -> None:
    """Those of targets that are there."""
    known = {(row.namespace, row.name) for row in tx.execute(select(notification_targets))}
    for row in rows:
        key = {
            "namespace": row.namespace,
            "target": row.target,
            "kind": row.subject.kind.value,
            "of": row.subject.namespace,
            "subject": row.subject.name,
        }
        if row.state is None:
            table = notification_states.c
            tx.execute(delete(notification_states).where(and_(*(table[name] == value for name, value in key.items()))))
        elif (row.namespace, row.target) in known:
            values = {**key, "state": row.state}
            tx.execute(insert(notification_states).values(values).on_conflict_do_update(set_=values))


def schedule_ends(tx: Connection) -> list[ScheduleEnd]:
    """How each schedule's last fire time ended that has ended. A few steps in an index for each."""
    fire = schedule_fires.c
    mine = (
        fire.namespace == schedules.c.namespace,
        fire.function == schedules.c.function,
        fire.schedule == schedules.c.name,
    )
    ended = select(fire.status).where(*mine, fire.status.in_(_ENDED)).order_by(fire.fire_time.desc()).limit(1)
    key = (schedules.c.namespace, schedules.c.function, schedules.c.name)
    # Two small questions for each row: as a join SQLite would ask them for every fire time.
    rows = tx.execute(select(*key, ended.scalar_subquery(), ended.with_only_columns(fire.fire_time).scalar_subquery()))
    return [ScheduleEnd(*row) for row in rows if row[3] is not None]


def new_letters(tx: Connection, since: float) -> list[Letters]:
    """Dead letters of each function since then."""
    table = dead_letters.c
    counted = (
        select(func.count())
        .where(table.namespace == functions.c.namespace, table.function == functions.c.name, table.died_at >= since)
        .scalar_subquery()
    )
    rows = tx.execute(select(functions.c.namespace, functions.c.name, counted))
    return [Letters(namespace, name, count) for namespace, name, count in rows if count]
