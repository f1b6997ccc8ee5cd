"""The names of the repositories, in pages."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select

from faas.state.session import Database
from registry.index.tables import repositories


async def repository_names(
    database: Database, last: str, limit: int, namespace: str | None = None, patterns: Sequence[str] = ()
) -> list[str]:
    """Sorted names after `last`: those of `namespace` ("": of none; None: of all), and those that a pattern fits."""
    query = select(repositories.c.name).where(repositories.c.name > last)
    if namespace is not None:
        fitting = [repositories.c.name.op("GLOB")(pattern) for pattern in patterns]  # means what `faas.patterns` does
        query = query.where(or_(repositories.c.namespace == namespace, *fitting))
    async with database.read() as tx:
        return [row[0] for row in await tx.execute(query.order_by(repositories.c.name).limit(limit))]
