"""Secrets, sealed: what is here nobody can read without the vault's key file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import secrets


@dataclass(frozen=True, slots=True)
class Sealed:
    """One secret as it is kept. `key`: which of the vault's keys opens `data`; `size`: bytes of the value."""

    namespace: str
    name: str
    version: int  # counts from 1 with each value that was set
    key: str
    data: bytes
    size: int
    set_at: float  # Unix seconds
    set_by: str

    @property
    def place(self) -> tuple[str, str]:
        return self.namespace, self.name


async def every(tx: Transaction) -> list[Sealed]:
    rows = await tx.execute(select(secrets).order_by(secrets.c.namespace, secrets.c.name))
    return [
        Sealed(row.namespace, row.name, row.version, row.key, row.sealed, row.size, row.set_at, row.set_by)
        for row in rows
    ]


async def put(tx: Transaction, row: Sealed) -> None:
    values = {
        "namespace": row.namespace, "name": row.name, "version": row.version, "key": row.key, "sealed": row.data,
        "size": row.size, "set_at": row.set_at, "set_by": row.set_by,
    }  # fmt: skip
    await tx.execute(insert(secrets).values(values).on_conflict_do_update(set_=values))


async def reseal(tx: Transaction, rows: Iterable[Sealed]) -> None:
    """The same values under another key."""
    values = [{"in": r.namespace, "of": r.name, "with_key": r.key, "as": r.data} for r in rows]
    if values:
        mine = (secrets.c.namespace == bindparam("in"), secrets.c.name == bindparam("of"))
        new: dict[str, Any] = {"key": bindparam("with_key"), "sealed": bindparam("as")}
        await tx.execute(update(secrets).where(*mine).values(new), values)


async def remove(tx: Transaction, namespace: str, name: str) -> None:
    await tx.execute(delete(secrets).where(secrets.c.namespace == namespace, secrets.c.name == name))
