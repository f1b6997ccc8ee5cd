"""`Garbage`: what nobody needs any more, found and taken from the rows in short transactions.

A manifest lives while a tag, a holder or a living index names it, while its subject lives (a signature goes with what
it signs), or while it is young. A blob lives in a repository while a manifest there needs it or a lease stands, and on
disk while any repository sees it.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from sqlalchemy import delete, exists, func, select, update

from faas.oci.digest import Digest
from faas.state.session import Database, Transaction
from registry.index.tables import blobs, children, manifests, repositories, repository_blobs, tags

AT_ONCE = 500  # rows of one transaction: nobody waits long for the writer's turn


@dataclass(slots=True)
class Collected:
    """What a collection took away, or would have taken."""

    manifests: int = 0
    blobs: int = 0
    bytes: int = 0
    files: int = 0  # without a row: what a crash left


class _NotReally(Exception):
    """Ends a transaction that must leave everything as it was."""


@dataclass(slots=True)
class Garbage:
    """`keep_seconds`: how long a manifest without a tag is kept. `dry` counts, and changes nothing."""

    database: Database
    keep_seconds: float
    now: float = field(default_factory=time.time)

    async def preview(self, held: Collection[str]) -> Collected:
        """What a collection would take now."""
        found = Collected()
        try:
            async with self.database.write() as tx:
                for repository in await _repositories(tx):
                    found.manifests += await self._drop_manifests(tx, repository, held)
                while await self._unlink(tx):
                    pass
                found.blobs, found.bytes = await _orphans(tx)
                raise _NotReally
        except _NotReally:
            return found

    async def drop_manifests(self, held: Collection[str]) -> int:
        async with self.database.read() as tx:
            names = await _repositories(tx)
        dropped = 0
        for repository in names:
            async with self.database.write() as tx:
                dropped += await self._drop_manifests(tx, repository, held)
        return dropped

    async def unlink_blobs(self) -> None:
        """Take from each repository the blobs that no manifest there needs and no lease keeps."""
        more = True
        while more:
            async with self.database.write() as tx:
                more = await self._unlink(tx)

    async def leaving(self) -> list[tuple[Digest, int]]:
        """Some blobs that no repository sees, with their sizes; marked, so that a crash does not forget them."""
        seen = select(repository_blobs.c.digest).where(repository_blobs.c.digest == blobs.c.digest)
        async with self.database.write() as tx:
            query = select(blobs.c.digest, blobs.c.size).where(~exists(seen)).limit(AT_ONCE)
            rows = (await tx.execute(query)).all()
            names = [row.digest for row in rows]
            await tx.execute(update(blobs).where(blobs.c.digest.in_(names)).values(leaving=True))
        return [(Digest.parse(row.digest), row.size) for row in rows]

    async def still_leaving(self, digest: Digest) -> bool:
        """Whether nobody has brought this blob again. Ask with the digest's turn in hand."""
        async with self.database.read() as tx:
            return bool((await tx.execute(select(blobs.c.leaving).where(blobs.c.digest == str(digest)))).scalar())

    async def gone(self, digest: Digest) -> None:
        """Its file is unlinked: now the row."""
        async with self.database.write() as tx:
            await tx.execute(delete(blobs).where(blobs.c.digest == str(digest), blobs.c.leaving))

    async def unknown(self, digests: Collection[Digest]) -> list[Digest]:
        """Those without a row."""
        names = {str(digest): digest for digest in digests}
        async with self.database.read() as tx:
            rows = await tx.execute(select(blobs.c.digest).where(blobs.c.digest.in_(names)))
            known = {row[0] for row in rows}
        return [digest for name, digest in names.items() if name not in known]

    async def _drop_manifests(self, tx: Transaction, repository: str, held: Collection[str]) -> int:
        dead = await self._dead(tx, repository, held)
        for begin in range(0, len(dead), AT_ONCE):
            names = dead[begin : begin + AT_ONCE]
            for table, column in ((children, children.c.manifest), (manifests, manifests.c.digest)):
                await tx.execute(delete(table).where(table.c.repository == repository, column.in_(names)))
        return len(dead)

    async def _dead(self, tx: Transaction, repository: str, held: Collection[str]) -> list[str]:
        """Decided and dropped in one transaction: a tag that comes meanwhile finds its manifest or waits."""
        here = manifests.c.repository == repository
        query = select(manifests.c.digest, manifests.c.subject, manifests.c.created_at).where(here)
        rows = (await tx.execute(query)).all()
        named = set((await tx.execute(select(tags.c.digest).where(tags.c.repository == repository))).scalars())
        edges: dict[str, list[str]] = {}
        inside = select(children.c.manifest, children.c.child).where(
            children.c.repository == repository, children.c.child.in_(select(manifests.c.digest).where(here))
        )
        for manifest, child in (await tx.execute(inside)).all():
            edges.setdefault(manifest, []).append(child)
        for row in rows:
            if row.subject:
                edges.setdefault(row.subject, []).append(row.digest)
        young = self.now - self.keep_seconds
        living = {row.digest for row in rows if row.digest in named or row.digest in held or row.created_at > young}
        reached = list(living)
        while reached:
            for other in edges.get(reached.pop(), ()):
                if other not in living:
                    living.add(other)
                    reached.append(other)
        return [row.digest for row in rows if row.digest not in living]

    async def _unlink(self, tx: Transaction) -> bool:
        """Some of them; whether there may be more."""
        needed = select(children.c.child).where(
            children.c.repository == repository_blobs.c.repository, children.c.child == repository_blobs.c.digest
        )
        query = select(repository_blobs.c.repository, repository_blobs.c.digest).where(
            repository_blobs.c.leased_until < self.now, ~exists(needed)
        )
        rows = (await tx.execute(query.limit(AT_ONCE))).all()
        for row in rows:
            mine = (repository_blobs.c.repository == row.repository, repository_blobs.c.digest == row.digest)
            await tx.execute(delete(repository_blobs).where(*mine))
        return len(rows) == AT_ONCE


async def _repositories(tx: Transaction) -> list[str]:
    return list((await tx.execute(select(repositories.c.name).order_by(repositories.c.name))).scalars())


async def _orphans(tx: Transaction) -> tuple[int, int]:
    seen = select(repository_blobs.c.digest).where(repository_blobs.c.digest == blobs.c.digest)
    query = select(func.count(), func.coalesce(func.sum(blobs.c.size), 0)).where(~exists(seen))
    count, size = (await tx.execute(query)).one()
    return int(count), int(size)
