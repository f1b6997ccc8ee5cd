"""Changes of tags as rows: added in the transaction that moves the tag, deleted when they are dealt with."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, insert, select

from faas.oci.changes import TagChange
from faas.state.session import Transaction
from registry.index.tables import tag_changes


async def add(tx: Transaction, repository: str, tag: str, digest: str, now: float) -> None:
    row = {"repository": repository, "tag": tag, "digest": digest, "changed_at": now}
    await tx.execute(insert(tag_changes).values(**row))


async def read(tx: Transaction, after: int, limit: int) -> list[TagChange]:
    query = select(tag_changes).where(tag_changes.c.id > after).order_by(tag_changes.c.id).limit(limit)
    return [TagChange(*row) for row in await tx.execute(query)]


async def remove(tx: Transaction, ids: Collection[int]) -> None:
    await tx.execute(delete(tag_changes).where(tag_changes.c.id.in_(ids)))
