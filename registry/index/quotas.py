"""`Quotas`: how many bytes a namespace may hold, and how many it holds.

What it holds is always a sum over rows, so that nothing can drift and a delete counts at once. Logical bytes are as if
every repository had its own copy; physically a blob counts once for its namespace. A blob counts while a manifest needs
it, or none has yet: what a deleted manifest leaves to the collector counts no more, and neither does a damaged one,
which is about to be brought again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Connection, exists, func, or_, select

from faas.oci.reference import namespace_of
from faas.state.session import Database
from registry.index.remembered import Remembered
from registry.index.tables import blobs, children, manifests, quotas, repositories, repository_blobs

KINDS = ("logical", "physical")


@dataclass(frozen=True, slots=True)
class Quota:
    """None: no limit of that kind."""

    logical_bytes: int | None = None
    physical_bytes: int | None = None

    def room(self, used: Usage) -> int | None:
        """Bytes that may still come; None where nothing limits them. Negative where the quota was lowered."""
        rooms = [limit - held for _, limit, held in self._limits(used)]
        return min(rooms, default=None)

    def full(self, used: Usage) -> tuple[str, int, int] | None:
        """(kind, limit, used) of what is crossed; None where nothing is."""
        return next((entry for entry in self._limits(used) if entry[2] > entry[1]), None)

    def _limits(self, used: Usage) -> list[tuple[str, int, int]]:
        pairs = ((self.logical_bytes, used.logical_bytes), (self.physical_bytes, used.physical_bytes))
        return [(kind, limit, held) for kind, (limit, held) in zip(KINDS, pairs, strict=True) if limit is not None]


@dataclass(frozen=True, slots=True)
class Usage:
    logical_bytes: int = 0
    physical_bytes: int = 0

    def plus(self, count: int) -> Usage:
        return Usage(self.logical_bytes + count, self.physical_bytes + count)


class OverQuota(Exception):
    """The namespace may not hold so much. `used` is what it holds and has promised, with what was asked for."""

    def __init__(self, namespace: str, kind: str, limit: int, used: int) -> None:
        super().__init__(namespace)
        self.namespace, self.kind, self.limit, self.used = namespace, kind, limit, used


class Quotas(Remembered[Quota]):
    """By namespace. Where there is none, nothing is added up."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, quotas, lambda row: Quota(row.logical_bytes, row.physical_bytes), asdict)

    def of(self, namespace: str) -> Quota | None:
        return self._known.get(namespace)

    def check(self, tx: Connection, repository: str, promised: int) -> None:
        """Called with the new rows written, so that they are taken back where they are too much. Raises OverQuota.

        `promised`: bytes that the namespace's open uploads may still bring.
        """
        namespace = namespace_of(repository)
        if (quota := self._known.get(namespace)) is not None:
            check(namespace, quota, usage(tx, namespace).get(namespace, Usage()).plus(promised))

    async def usage_of(self, namespace: str) -> Usage:
        return (await self._database.ask(lambda tx: usage(tx, namespace))).get(namespace, Usage())

    async def usages(self) -> dict[str, Usage]:
        """Of every namespace that holds anything."""
        return await self._database.ask(usage)


def check(namespace: str, quota: Quota, used: Usage) -> None:
    """Raises OverQuota."""
    if (crossed := quota.full(used)) is not None:
        raise OverQuota(namespace, *crossed)


def usage(tx: Connection, namespace: str | None = None) -> dict[str, Usage]:
    needed = exists().where(
        children.c.repository == repository_blobs.c.repository, children.c.child == repository_blobs.c.digest
    )
    counted = (blobs.c.damaged_at.is_(None), or_(repository_blobs.c.awaited, needed))
    held = (
        select(repositories.c.namespace, blobs.c.digest, blobs.c.size)
        .join(repository_blobs, repository_blobs.c.repository == repositories.c.name)
        .join(blobs, blobs.c.digest == repository_blobs.c.digest)
        .where(*counted, *_within(namespace))
    )
    size = func.length(manifests.c.raw).label("size")
    written = select(repositories.c.namespace, manifests.c.digest, size)
    written = written.join(manifests, manifests.c.repository == repositories.c.name).where(*_within(namespace))
    logical: dict[str, int] = {}
    physical: dict[str, int] = {}
    for query in (held, written):
        for sums, rows in ((logical, query.subquery()), (physical, query.distinct().subquery())):
            total = select(rows.c.namespace, func.sum(rows.c.size)).group_by(rows.c.namespace)
            for name, count in tx.execute(total):
                sums[name] = sums.get(name, 0) + int(count)
    return {name: Usage(logical[name], physical[name]) for name in sorted(logical)}


def _within(namespace: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if namespace is None else (repositories.c.namespace == namespace,)
