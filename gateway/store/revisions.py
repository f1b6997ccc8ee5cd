"""Revisions: written once, read into memory at start, deleted when they are old and unnamed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.engine import Row

from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from faas.state.session import Transaction
from faas.state.tables import revisions


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """A revision and who made it when (Unix seconds)."""

    revision: Revision
    created_at: float
    created_by: str


def _row(row: Row[tuple[object, ...]]) -> RevisionRow:
    key = RevisionKey(row.namespace, row.function, row.number)
    revision = Revision(key, parse(json.loads(row.spec)), row.image, Interface(row.interface))
    return RevisionRow(revision, row.created_at, row.created_by)


async def every(tx: Transaction) -> list[RevisionRow]:
    return [_row(row) for row in await tx.execute(select(revisions).order_by(revisions.c.number))]


async def of_function(tx: Transaction, namespace: str, function: str) -> list[RevisionRow]:
    """By number, oldest first."""
    chosen = select(revisions).where(revisions.c.namespace == namespace, revisions.c.function == function)
    return [_row(row) for row in await tx.execute(chosen.order_by(revisions.c.number))]


async def add(tx: Transaction, row: RevisionRow) -> None:
    revision = row.revision
    await tx.execute(
        insert(revisions).values(
            namespace=revision.key.namespace,
            function=revision.key.function,
            number=revision.key.number,
            image=revision.image,
            spec=json.dumps(revision.spec.to_dict(), sort_keys=True),
            interface=revision.interface.value,
            created_at=row.created_at,
            created_by=row.created_by,
        )
    )


async def found(tx: Transaction, revision: Revision) -> None:
    """Store the interface that was found out."""
    key = revision.key
    await tx.execute(update(revisions).where(*_is(key)).values(interface=revision.interface.value))


async def remove(tx: Transaction, key: RevisionKey) -> None:
    await tx.execute(delete(revisions).where(*_is(key)))


def _is(key: RevisionKey) -> tuple[ColumnElement[bool], ...]:
    table = revisions.c
    return (table.namespace == key.namespace, table.function == key.function, table.number == key.number)
