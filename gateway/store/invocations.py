"""The queue of asynchronous invocations: accepted, claimed, ended; each change one short transaction."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Row

from faas.protocol import Trigger
from faas.state.session import Transaction
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


async def add(tx: Transaction, events: Iterable[QueuedEvent]) -> None:
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
        await tx.execute(insert(invocations), rows)


async def recover(tx: Transaction) -> None:
    """At start nobody owns anything: what was running when the server ended is to run again."""
    await tx.execute(update(invocations).where(invocations.c.status == RUNNING).values(status=PENDING))


async def claim(
    tx: Transaction, now: float, choose: Callable[[Mapping[str, int]], Mapping[str, int]]
) -> tuple[list[QueuedEvent], float | None]:
    """Take due rows, the oldest of each lane; they are running from now on. `choose` is given how many rows of each
    lane are due, and says how many of each to take.

    Returns them with the time at which the next row falls due, or None.
    """
    table = invocations.c
    due, later = table.not_before <= now, table.not_before > now
    lanes = (
        await tx.execute(
            select(table.lane, func.count().filter(due), func.min(table.not_before).filter(later))
            .where(table.status == PENDING)
            .group_by(table.lane)
        )
    ).all()
    claimed: list[QueuedEvent] = []
    for lane, count in choose({lane: count for lane, count, _ in lanes if count}).items():
        oldest = select(invocations).where(table.status == PENDING, table.lane == lane, due)
        rows = await tx.execute(oldest.order_by(table.not_before).limit(count))
        claimed += [_event(row) for row in rows]
    if claimed:
        ids = [event.id for event in claimed]
        await tx.execute(update(invocations).where(table.id.in_(ids)).values(status=RUNNING))
    return claimed, min((next_due for _, _, next_due in lanes if next_due is not None), default=None)


async def again(tx: Transaction, event: QueuedEvent) -> None:
    """Put a claimed row back, with its counts, error and `not_before`."""
    await tx.execute(
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


async def end(tx: Transaction, event: QueuedEvent) -> bool:
    """The row is over, with `status` and error; its payload goes, it stays to answer for itself.

    Whether it was still there: it goes with its function.
    """
    ended = await tx.execute(
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


async def get(tx: Transaction, invocation_id: str) -> QueuedEvent | None:
    row = (await tx.execute(select(invocations).where(invocations.c.id == invocation_id))).first()
    return _event(row) if row else None


async def remove(tx: Transaction, invocation_id: str) -> None:
    await tx.execute(delete(invocations).where(invocations.c.id == invocation_id))


async def remove_of(tx: Transaction, namespace: str, function: str) -> None:
    """Forget everything queued for a function."""
    table = invocations.c
    await tx.execute(delete(invocations).where(table.namespace == namespace, table.function == function))


async def remove_ended(tx: Transaction, before: float) -> None:
    table = invocations.c
    await tx.execute(delete(invocations).where(table.status.in_((SUCCESS, ERROR)), table.ended_at < before))


async def backlog(tx: Transaction) -> dict[tuple[str, str], int]:
    """(namespace, function) → rows that have not ended, callbacks left out."""
    table = invocations.c
    rows = await tx.execute(
        select(table.namespace, table.function, func.count())
        .where(table.status.in_((PENDING, RUNNING)), table.kind != Kind.CALLBACK.value)
        .group_by(table.namespace, table.function)
    )
    return {(namespace, function): count for namespace, function, count in rows}
