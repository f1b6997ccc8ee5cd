"""What the scrub asks the rows: which blobs are due, what it found, and whom that touches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, bindparam, func, or_, select, tuple_, update

from faas.oci.digest import Digest
from registry.index.tables import blobs, children, manifests, tags

Key = tuple[str, str]  # a manifest's repository and digest

AT_ONCE = 100  # blobs, or manifests, that are read in one go
LISTED = 1000  # of each kind in one answer


@dataclass(frozen=True, slots=True)
class Due:
    digest: Digest
    size: int
    damaged_at: float | None  # when that was first found


@dataclass(frozen=True, slots=True)
class Damaged:
    """`images`: the manifests that need the blob, also through an index, with the tags that name them."""

    digest: str
    size: int
    damaged_at: float
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Image:
    repository: str
    digest: str
    tags: tuple[str, ...]


def due(tx: Connection, before: float, damaged_before: float) -> list[Due]:
    """Those that were longest not looked at; damaged ones sooner, since some mend by themselves."""
    query = select(blobs.c.digest, blobs.c.size, blobs.c.damaged_at).where(_due(before, damaged_before))
    rows = tx.execute(query.order_by(blobs.c.checked_at).limit(AT_ONCE))
    return [Due(Digest.parse(row.digest), row.size, row.damaged_at) for row in rows]


def amount(tx: Connection, before: float, damaged_before: float) -> tuple[int, int]:
    """(blobs, bytes) that are due."""
    query = select(func.count(), func.coalesce(func.sum(blobs.c.size), 0)).where(_due(before, damaged_before))
    count, size = tx.execute(query).one()
    return int(count), int(size)


def _due(before: float, damaged_before: float) -> ColumnElement[bool]:
    damaged = blobs.c.damaged_at.is_not(None) & (blobs.c.checked_at < damaged_before)
    return ~blobs.c.leaving & or_(blobs.c.checked_at < before, damaged)


def still(tx: Connection, digest: Digest) -> bool:
    """Whether its row stands. Ask with the digest's turn in hand."""
    query = select(blobs.c.digest).where(blobs.c.digest == str(digest), ~blobs.c.leaving)
    return tx.execute(query).first() is not None


def checked(tx: Connection, digests: Collection[Digest], now: float) -> None:
    """These are whole, also if they were not before."""
    rows = [{"of_digest": str(digest)} for digest in digests]
    tx.execute(
        update(blobs).where(blobs.c.digest == bindparam("of_digest")).values(checked_at=now, damaged_at=None), rows
    )


def damaged(tx: Connection, digest: Digest, now: float, first: float) -> None:
    mine = update(blobs).where(blobs.c.digest == str(digest), ~blobs.c.leaving)
    tx.execute(mine.values(checked_at=now, damaged_at=first))


def damaged_blobs(tx: Connection) -> list[Damaged]:
    query = select(blobs.c.digest, blobs.c.size, blobs.c.damaged_at).where(blobs.c.damaged_at.is_not(None))
    rows = tx.execute(query.order_by(blobs.c.damaged_at).limit(LISTED)).all()
    return [Damaged(row.digest, row.size, row.damaged_at, tuple(_images(tx, row.digest))) for row in rows]


def damaged_digests(tx: Connection) -> list[str]:
    """Of some of them; the longest known first."""
    query = select(blobs.c.digest).where(blobs.c.damaged_at.is_not(None)).order_by(blobs.c.damaged_at).limit(LISTED)
    return list(tx.execute(query).scalars())


def damaged_count(tx: Connection) -> int:
    return int(tx.execute(select(func.count()).where(blobs.c.damaged_at.is_not(None))).scalar_one())


def manifests_after(tx: Connection, key: Key) -> list[tuple[str, str, bytes]]:
    """(repository, digest, bytes) of some, in the order of their keys."""
    columns = (manifests.c.repository, manifests.c.digest)
    query = select(*columns, manifests.c.raw).where(tuple_(*columns) > tuple_(*key))
    rows = tx.execute(query.order_by(*columns).limit(AT_ONCE))
    return [(row.repository, row.digest, row.raw) for row in rows]


def manifest_bytes(tx: Connection, key: Key) -> bytes | None:
    query = select(manifests.c.raw).where(manifests.c.repository == key[0], manifests.c.digest == key[1])
    return tx.execute(query).scalar()


def tags_of(tx: Connection, key: Key) -> tuple[str, ...]:
    query = select(tags.c.tag).where(tags.c.repository == key[0], tags.c.digest == key[1])
    return tuple(tx.execute(query.order_by(tags.c.tag).limit(LISTED)).scalars())


def _images(tx: Connection, blob: str) -> Iterator[Image]:
    """Up the edges, from what needs the blob to the indexes over it."""
    query = select(children.c.repository, children.c.manifest)
    found: set[Key] = set()
    level = {(row.repository, row.manifest) for row in tx.execute(query.where(children.c.child == blob).limit(LISTED))}
    while level and len(found) < LISTED:
        found |= level
        above = [
            tx.execute(query.where(children.c.repository == repository, children.c.child == manifest)).all()
            for repository, manifest in level
        ]
        level = {(row.repository, row.manifest) for rows in above for row in rows} - found
    for repository, manifest in sorted(found):
        yield Image(repository, manifest, tags_of(tx, (repository, manifest)))
