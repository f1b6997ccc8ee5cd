"""Revisions: written once, read into memory at start, deleted when they are old and unnamed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.engine import Row

from faas.errors import SpecError
from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from faas.state.session import Transaction
from faas.state.tables import revisions

log = logging.getLogger("faas.revisions")


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """A revision and who made it when (Unix seconds)."""

    revision: Revision
    created_at: float
    created_by: str


def _rows(found: Iterable[Row[tuple[Any, ...]]]) -> list[RevisionRow]:
    """A spec that this version refuses takes its own revision out of use, not the server."""
    rows = []
    for row in found:
        key = RevisionKey(row.namespace, row.function, row.number)
        try:
            spec = parse(json.loads(row.spec))
        except SpecError as error:
            log.error("%s cannot be used any more: %s", key, error.message)
            continue
        revision = Revision(key, spec, row.image, Interface(row.interface))
        rows.append(RevisionRow(revision, row.created_at, row.created_by))
    return rows


async def every(tx: Transaction) -> list[RevisionRow]:
    return _rows(await tx.execute(select(revisions).order_by(revisions.c.number)))


async def of_function(tx: Transaction, namespace: str, function: str) -> list[RevisionRow]:
    """By number, oldest first."""
    chosen = select(revisions).where(revisions.c.namespace == namespace, revisions.c.function == function)
    return _rows(await tx.execute(chosen.order_by(revisions.c.number)))


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
