"""Revisions: written once, read into memory at start, deleted when they are old and unnamed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.engine import Row

from faas.errors import SpecError
from faas.protocol import Revision, RevisionKey
from faas.spec import FunctionSpec, Interface, parse
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
    """A spec that this version refuses takes its own revision out of use, not the server. Revisions that differ by
    their image alone, as most do, share one."""
    rows, specs = [], dict[str, FunctionSpec]()
    for row in found:
        key = RevisionKey(row.namespace, row.function, row.number)
        try:
            spec = specs.get(row.spec) or specs.setdefault(row.spec, parse(json.loads(row.spec)))
        except SpecError as error:
            log.error("%s cannot be used any more: %s", key, error.message)
            continue
        revision = Revision(key, spec, row.image, Interface(row.interface))
        rows.append(RevisionRow(revision, row.created_at, row.created_by))
    return rows


async def every(tx: Transaction) -> list[RevisionRow]:
    return _rows(await tx.execute(select(revisions).order_by(revisions.c.number)))


async def made(tx: Transaction, namespace: str, function: str) -> dict[int, tuple[float, str]]:
    """When and by whom a function's revisions were made, by number."""
    table = revisions.c
    chosen = select(table.number, table.created_at, table.created_by)
    rows = await tx.execute(chosen.where(table.namespace == namespace, table.function == function))
    return {number: (at, by) for number, at, by in rows}


async def numbers(tx: Transaction, namespace: str, function: str) -> list[int]:
    """Oldest first; those that this version refuses too."""
    table = revisions.c
    chosen = select(table.number).where(table.namespace == namespace, table.function == function)
    return list((await tx.execute(chosen.order_by(table.number))).scalars())


async def numbered(
    tx: Transaction, namespace: str, function: str, known: Mapping[int, Revision]
) -> dict[int, Revision]:
    """A function's revisions by number, as they are stored. What is in `known` is not read again: only the interface of
    a revision ever changes."""
    table = revisions.c
    mine = (table.namespace == namespace, table.function == function)
    listed = list(await tx.execute(select(table.number, table.interface).where(*mine).order_by(table.number)))
    same = {n: known[n] for n, interface in listed if n in known and known[n].interface.value == interface}
    missing = [n for n, _ in listed if n not in same]
    read = _rows(await tx.execute(select(revisions).where(*mine, table.number.in_(missing)))) if missing else []
    found = same | {row.revision.key.number: row.revision for row in read}
    return {n: found[n] for n, _ in listed if n in found}


async def images(tx: Transaction) -> dict[str, list[str]]:
    """Image (`repository@digest`) → revisions, by name; also those that this version refuses: another one may not."""
    table = revisions.c
    found: dict[str, list[str]] = {}
    rows = await tx.execute(select(table.image, table.namespace, table.function, table.number))
    for image, *key in rows:
        found.setdefault(image, []).append(str(RevisionKey(*key)))
    return found


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
