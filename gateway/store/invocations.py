"""The queue of asynchronous invocations: accepted, claimed, ended; each change one short transaction."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.engine import Row

from faas.leases import Trigger
from faas.state.tables import invocations

PENDING, RUNNING, SUCCESS, ERROR = "pending", "running", "success", "error"
FILES, CALLBACKS = "#files", "#callbacks"  # ends of lanes


class Kind(enum.StrEnum):
    """What a row asks for, and what `payload` is."""

    EVENT = "event"  # the function's event, JSON
    HTTP = "http"  # a request's body; `meta` holds the rest of the request
    FILE = "file"  # nothing: `meta` refers to a file that is read when the row runs
    CALLBACK = "callback"  # a result, on its way to `callback_url`


@dataclass(frozen=True, slots=True)
class QueuedEvent:
    """One asynchronous invocation. Times are Unix seconds.

    `attempts` counts runs that failed by the function's fault, `deferrals` tries that found no capacity.
    """

    id: str
    namespace: str
    function: str
    trigger: Trigger
    kind: Kind = Kind.EVENT
    payload: bytes = b"{}"
    qualifier: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    callback_url: str = ""
    status: str = PENDING
    attempts: int = 0
    deferrals: int = 0
    not_before: float = 0.0
    created_at: float = 0.0
    ended_at: float | None = None
    error_type: str = ""
    error_message: str = ""

    @property
    def lane(self) -> str:
        """Rows of one lane share a bound on what is in flight, and wait for each other only."""
        end = {Kind.FILE: FILES, Kind.CALLBACK: CALLBACKS}.get(self.kind, "")
        return f"{self.namespace}/{self.function}{end}"


def _event(row: Row[tuple[Any, ...]]) -> QueuedEvent:
    values = dict(row._mapping)
    del values["lane"]
    values |= {"trigger": Trigger(row.trigger), "kind": Kind(row.kind), "meta": json.loads(row.meta)}
    return QueuedEvent(**values)


def add(tx: Connection, events: Iterable[QueuedEvent]) -> None:
    rows = [
        {
            "namespace": e.namespace,
            "id": e.id,
            "function": e.function,
            "qualifier": e.qualifier,
            "trigger": e.trigger.value,
            "kind": e.kind.value,
            "lane": e.lane,
            "payload": e.payload,
            "meta": json.dumps(dict(e.meta)),
            "callback_url": e.callback_url,
            "status": e.status,
            "attempts": e.attempts,
            "deferrals": e.deferrals,
            "not_before": e.not_before,
            "created_at": e.created_at,
            "ended_at": e.ended_at,
            "error_type": e.error_type,
            "error_message": e.error_message,
        }
        for e in events
    ]
    if rows:
        tx.execute(insert(invocations), rows)


def recover(tx: Connection) -> None:
    """At start nobody owns anything: what was running when the server ended is to run again."""
    tx.execute(update(invocations).where(invocations.c.status == RUNNING).values(status=PENDING))


def due(tx: Connection, now: float) -> tuple[dict[str, int], float | None]:
    """How many rows of each lane are due, and when the next one falls due (None: none)."""
    table = invocations.c
    is_due, later = table.not_before <= now, table.not_before > now
    lanes = tx.execute(
        select(table.lane, func.count().filter(is_due), func.min(table.not_before).filter(later))
        .where(table.status == PENDING)
        .group_by(table.lane)
    ).all()
    counts = {lane: count for lane, count, _ in lanes if count}
    return counts, min((next_due for _, _, next_due in lanes if next_due is not None), default=None)


def claim(tx: Connection, now: float, chosen: Mapping[str, int]) -> list[QueuedEvent]:
    """Take so many due rows of each lane, the oldest; they are running from now on."""
    table = invocations.c
    claimed: list[QueuedEvent] = []
    for lane, count in chosen.items():
        oldest = select(invocations).where(table.status == PENDING, table.lane == lane, table.not_before <= now)
        claimed += [_event(row) for row in tx.execute(oldest.order_by(table.not_before).limit(count))]
    if claimed:
        ids = [event.id for event in claimed]
        tx.execute(update(invocations).where(table.id.in_(ids)).values(status=RUNNING))
    return claimed


def again(tx: Connection, event: QueuedEvent) -> None:
    """Put a claimed row back, with its counts, error and `not_before`."""
    tx.execute(
        update(invocations)
        .where(invocations.c.id == event.id)
        .values(
            status=PENDING,
            attempts=event.attempts,
            deferrals=event.deferrals,
            not_before=event.not_before,
            error_type=event.error_type,
            error_message=event.error_message,
        )
    )


def end(tx: Connection, event: QueuedEvent) -> bool:
    """The row is over, with `status` and error; its payload goes, it stays to answer for itself.

    Whether it was still there: it goes with its function.
    """
    ended = tx.execute(
        update(invocations)
        .where(invocations.c.id == event.id)
        .values(
            status=event.status,
            attempts=event.attempts,
            ended_at=event.ended_at,
            error_type=event.error_type,
            error_message=event.error_message,
            payload=b"",
            meta="{}",
        )
    )
    return bool(ended.rowcount)


def get(tx: Connection, invocation_id: str) -> QueuedEvent | None:
    row = tx.execute(select(invocations).where(invocations.c.id == invocation_id)).first()
    return _event(row) if row else None


def remove(tx: Connection, invocation_id: str) -> None:
    tx.execute(delete(invocations).where(invocations.c.id == invocation_id))


def remove_of(tx: Connection, namespace: str, function: str) -> None:
    """Forget everything queued for a function."""
    table = invocations.c
    tx.execute(delete(invocations).where(table.namespace == namespace, table.function == function))


def remove_ended(tx: Connection, before: float) -> None:
    table = invocations.c
    tx.execute(delete(invocations).where(table.status.in_((SUCCESS, ERROR)), table.ended_at < before))


def backlog(tx: Connection) -> dict[tuple[str, str], int]:
    """(namespace, function) → rows that have not ended, callbacks left out."""
    table = invocations.c
    rows = tx.execute(
        select(table.namespace, table.function, func.count())
        .where(table.status.in_((PENDING, RUNNING)), table.kind != Kind.CALLBACK.value)
        .group_by(table.namespace, table.function)
    )
    return {(namespace, function): count for namespace, function, count in rows}
