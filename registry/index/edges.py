"""Questions about what names what in a repository, as statements: which of these are here, and how deep indexes go."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Select, Table, func, literal, select

from faas.oci.manifest import INDEX_DEPTH
from registry.index.tables import children


def here(table: Table, repository: str, digests: Iterable[str]) -> Select[str]:
    """Those of `digests` that `repository` has a row for in `table` (`repository_blobs` or `manifests`)."""
    return select(table.c.digest).where(table.c.repository == repository, table.c.digest.in_(list(digests)))


def depth(repository: str, entries: Iterable[str]) -> Select[int | None]:
    """How many levels stand below an index with these entries, counted no further than one too many: an image's own
    blobs are one."""
    mine = children.c.repository == repository
    below = select(children.c.child, literal(1).label("level")).where(mine, children.c.manifest.in_(list(entries)))
    level = below.cte("below", recursive=True)
    deeper = select(children.c.child, level.c.level + 1).where(
        mine, children.c.manifest == level.c.child, level.c.level <= INDEX_DEPTH
    )
    return select(func.max(level.union(deeper).c.level))
