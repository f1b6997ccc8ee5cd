"""Schedules and their fire times. A fire time is a row whose key can be written once: that is what fires once."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select, tuple_, update
from sqlalchemy.dialects.sqlite import insert

from faas.spec import Missed, Overlap, ScheduleSpec
from faas.state.tables import schedule_fires, schedules
from gateway.store.invocations import PENDING, RUNNING

SKIPPED, MISSED = "skipped", "missed"  # beside the statuses of `gateway.store.invocations`
KEPT_FIRES = 200  # of each schedule, beside those that have not ended
_UNFINISHED = (PENDING, RUNNING)


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule of a function's live revision; fire times up to `considered_until` (Unix) are dealt with."""

    namespace: str
    function: str
    spec: ScheduleSpec
    considered_until: float

    @property
    def key(self) -> tuple[str, str, str]:
        return self.namespace, self.function, self.spec.name


@dataclass(frozen=True, slots=True)
class Fire:
    """One fire time (Unix) and what became of it."""

    fire_time: int
    status: str
    invocation: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    error: str = ""


def every(tx: Connection) -> list[ScheduleRow]:
    rows = tx.execute(select(schedules).order_by(schedules.c.namespace, schedules.c.function, schedules.c.name))
    return [
        ScheduleRow(
            row.namespace,
            row.function,
            ScheduleSpec(
                row.name, row.cron, row.timezone, Missed(row.missed), Overlap(row.overlap), json.loads(row.input)
            ),
            row.considered_until,
        )
        for row in rows
    ]


def replace(tx: Connection, namespace: str, function: str, specs: Collection[ScheduleSpec], now: float) -> None:
    """Make a function's schedules exactly `specs`. One whose times change counts from now; its history stays."""
    table = schedules.c
    mine = (table.namespace == namespace, table.function == function)
    tx.execute(delete(schedules).where(*mine, table.name.not_in([spec.name for spec in specs])))
    rows = tx.execute(select(schedules).where(*mine))
    known = {row.name: (row.cron, row.timezone, row.considered_until) for row in rows}
    for spec in specs:
        cron, timezone, until = known.get(spec.name, ("", "", now))
        values = {
            "cron": spec.cron,
            "timezone": spec.timezone,
            "missed": spec.missed.value,
            "overlap": spec.overlap.value,
            "input": json.dumps(dict(spec.input)),
            "considered_until": until if (cron, timezone) == (spec.cron, spec.timezone) else now,
        }
        key = {"namespace": namespace, "function": function, "name": spec.name}
        tx.execute(insert(schedules).values(key | values).on_conflict_do_update(set_=values))


def considered(tx: Connection, row: ScheduleRow, until: float) -> bool:
    """Fire times up to `until` are dealt with. False where the schedule has gone meanwhile, or has other times."""
    table = schedules.c
    namespace, function, name = row.key
    written = tx.execute(
        update(schedules)
        .where(table.namespace == namespace, table.function == function, table.name == name)
        .where(table.cron == row.spec.cron, table.timezone == row.spec.timezone)
        .values(considered_until=until)
    )
    return bool(written.rowcount)


def record(tx: Connection, row: ScheduleRow, fires: Iterable[Fire]) -> list[Fire]:
    """Write fire times; returns those that were new. Old history is cut, but never what still waits or runs."""
    namespace, function, name = row.key
    new = []
    for fire in fires:
        values = {
            "namespace": namespace,
            "function": function,
            "schedule": name,
            "fire_time": fire.fire_time,
            "status": fire.status,
            "invocation": fire.invocation,
            "started_at": fire.started_at,
            "ended_at": fire.ended_at,
            "error": fire.error,
        }
        written = tx.execute(insert(schedule_fires).values(values).on_conflict_do_nothing())
        if written.rowcount:
            new.append(fire)
    table = schedule_fires.c
    mine = (table.namespace == namespace, table.function == function, table.schedule == name)
    kept = select(table.fire_time).where(*mine).order_by(table.fire_time.desc()).limit(KEPT_FIRES)
    over = (table.fire_time.not_in(kept), table.status.not_in(_UNFINISHED))
    tx.execute(delete(schedule_fires).where(*mine, *over))
    return new


def unfinished(tx: Connection, row: ScheduleRow) -> bool:
    """Whether an earlier fire of this schedule still waits or runs."""
    table = schedule_fires.c
    namespace, function, name = row.key
    found = tx.execute(
        select(table.fire_time)
        .where(table.namespace == namespace, table.function == function, table.schedule == name)
        .where(table.status.in_(_UNFINISHED))
        .limit(1)
    )
    return found.first() is not None


def running(tx: Connection, invocation: str, now: float) -> None:
    """The fire's invocation has been claimed; the first time counts."""
    table = schedule_fires.c
    started = update(schedule_fires).where(table.invocation == invocation)
    tx.execute(started.values(status=RUNNING))
    tx.execute(started.where(table.started_at.is_(None)).values(started_at=now))


def ended(tx: Connection, invocation: str, status: str, error: str, now: float) -> None:
    table = schedule_fires.c
    tx.execute(
        update(schedule_fires).where(table.invocation == invocation).values(status=status, error=error, ended_at=now)
    )


def history(tx: Connection, namespace: str, function: str, name: str) -> list[Fire]:
    """The newest first."""
    table = schedule_fires.c
    rows = tx.execute(
        select(table.fire_time, table.status, table.invocation, table.started_at, table.ended_at, table.error)
        .where(table.namespace == namespace, table.function == function, table.schedule == name)
        .order_by(table.fire_time.desc())
    )
    return [Fire(*row) for row in rows]


def last_fires(tx: Connection) -> dict[tuple[str, str, str], Fire]:
    """Each schedule's newest fire."""
    table = schedule_fires.c
    key = (table.namespace, table.function, table.schedule)
    newest = select(*key, func.max(table.fire_time)).group_by(*key)
    rows = tx.execute(select(schedule_fires).where(tuple_(*key, table.fire_time).in_(newest)))
    return {
        (row.namespace, row.function, row.schedule): Fire(
            row.fire_time, row.status, row.invocation, row.started_at, row.ended_at, row.error
        )
        for row in rows
    }
