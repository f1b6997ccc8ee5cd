"""Dead letters: events given up, kept with their payload until somebody retries or deletes them.

Of each function the newest `KEPT_LETTERS` are kept, and none for longer than `KEPT_SECONDS`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from faas.leases import Trigger
from faas.state.tables import dead_letters
from gateway.store.invocations import Kind, QueuedEvent

KEPT_LETTERS = 1000  # of each function
KEPT_SECONDS = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The event as it was queued (its error and attempts too), when it died (Unix seconds), its payload's size.

    A listing leaves the payload out.
    """

    event: QueuedEvent
    died_at: float
    size: int


_COLUMNS = [c for c in dead_letters.c if c.name != "payload"]


def add(tx: Connection, event: QueuedEvent, died_at: float) -> int:
    """Keep the event; how many older letters of its function had to go for it."""
    tx.execute(
        insert(dead_letters)
        .prefix_with("OR REPLACE")
        .values(
            namespace=event.namespace,
            id=event.id,
            function=event.function,
            qualifier=event.qualifier,
            trigger=event.trigger.value,
            kind=event.kind.value,
            payload=event.payload,
            meta=json.dumps(dict(event.meta)),
            error_type=event.error_type,
            error_message=event.error_message,
            attempts=event.attempts,
            created_at=event.created_at,
            died_at=died_at,
        )
    )
    table = dead_letters.c
    mine = select(table.id).where(table.namespace == event.namespace, table.function == event.function)
    surplus = mine.order_by(table.died_at.desc()).limit(-1).offset(KEPT_LETTERS)
    return tx.execute(delete(dead_letters).where(table.id.in_(surplus))).rowcount


def remove_old(tx: Connection, now: float) -> dict[tuple[str, str], int]:
    """Let go those that are too old: (namespace, function) → how many."""
    table = dead_letters.c
    old = table.died_at < now - KEPT_SECONDS
    counted = select(table.namespace, table.function, func.count()).where(old)
    rows = tx.execute(counted.group_by(table.namespace, table.function)).all()
    if rows:
        tx.execute(delete(dead_letters).where(old))
    return {(namespace, function): count for namespace, function, count in rows}


def every(tx: Connection, namespace: str = "", function: str = "", limit: int = 1000) -> list[DeadLetter]:
    """The newest first, without payloads; of one namespace and function where given."""
    chosen = select(*_COLUMNS, func.length(dead_letters.c.payload).label("size"))
    if namespace:
        chosen = chosen.where(dead_letters.c.namespace == namespace)
    if function:
        chosen = chosen.where(dead_letters.c.function == function)
    rows = tx.execute(chosen.order_by(dead_letters.c.died_at.desc()).limit(limit))
    return [_letter(dict(row._mapping) | {"payload": b""}) for row in rows]


def get(tx: Connection, letter_id: str) -> DeadLetter | None:
    row = tx.execute(select(dead_letters).where(dead_letters.c.id == letter_id)).first()
    return _letter(dict(row._mapping) | {"size": len(row.payload)}) if row else None


def remove(tx: Connection, letter_id: str) -> bool:
    """Whether it was there."""
    return bool(tx.execute(delete(dead_letters).where(dead_letters.c.id == letter_id)).rowcount)


def remove_of(tx: Connection, namespace: str, function: str) -> None:
    table = dead_letters.c
    tx.execute(delete(dead_letters).where(table.namespace == namespace, table.function == function))


def _letter(values: dict[str, object]) -> DeadLetter:
    died_at, size = values.pop("died_at"), values.pop("size")
    values |= {
        "trigger": Trigger(str(values["trigger"])),
        "kind": Kind(str(values["kind"])),
        "meta": json.loads(str(values["meta"])),
    }
    assert isinstance(died_at, float)
    assert isinstance(size, int)
    return DeadLetter(QueuedEvent(**values), died_at, size)  # type: ignore[arg-type]
