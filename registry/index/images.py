"""What the rows say of one image beside its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, literal, select

from faas.state.session import Database
from registry.index.tables import blobs, children, manifests, repository_blobs, tags


@dataclass(frozen=True, slots=True)
class Image:
    """`created_at`: when it was pushed first, in Unix seconds. `manifests`: itself and, of an index, its entries.
    `bytes`: of all that it consists of and that its repository sees, each blob once; what other images share counts
    too."""

    digest: str
    media_type: str
    created_at: float
    tags: list[str]
    manifests: list[str]
    bytes: int


async def image_of(database: Database, repository: str, digest: str) -> Image | None:
    """None where there is no such manifest in this repository."""
    mine = manifests.c.repository == repository
    parts = select(literal(digest).label("digest")).cte("parts", recursive=True)
    below = select(children.c.child).where(children.c.repository == repository, children.c.manifest == parts.c.digest)
    parts = parts.union(below)
    named = select(parts.c.digest)
    async with database.read() as tx:
        row = (await tx.execute(select(manifests).where(mine, manifests.c.digest == digest))).first()
        if row is None:
            return None
        own = select(manifests.c.digest, func.length(manifests.c.raw)).where(mine, manifests.c.digest.in_(named))
        sizes: dict[str, int] = {row[0]: row[1] for row in await tx.execute(own)}
        seen = select(repository_blobs.c.digest).where(repository_blobs.c.repository == repository)
        stored = select(func.coalesce(func.sum(blobs.c.size), 0)).where(
            blobs.c.digest.in_(named), blobs.c.digest.in_(seen)
        )
        total = sum(sizes.values()) + (await tx.execute(stored)).scalar_one()
        names = select(tags.c.tag).where(tags.c.repository == repository, tags.c.digest == digest).order_by(tags.c.tag)
        found = [name for (name,) in await tx.execute(names)]
    return Image(digest, row.media_type, row.created_at, found, sorted(sizes), int(total))
