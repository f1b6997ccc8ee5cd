"""`referrers`: manifests that say what they are about, a page at a time (distribution-spec, "Listing Referrers").

What stands in an index under the referrers tag (`sha256-<hex>`) counts as well: clients keep such tags at registries
without this API, and they come along when images are copied from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, func, or_, select

from faas.oci.digest import Digest
from faas.oci.manifest import MANIFEST_BYTES
from faas.oci.reference import referrers_tag
from faas.state.session import Database
from registry.index.tables import children, manifests, tags

ENTRY_BYTES = 1024  # at most, of an entry without what its manifest says
PAGE_BYTES = MANIFEST_BYTES  # of a whole answer: clients read no larger index


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose `subject` is another one."""

    digest: str
    media_type: str
    size: int
    artifact_type: str
    annotations: str  # as JSON


def fitting(sizes: list[int]) -> int:
    """How many of these entries, in their order, fit in one answer: at least one, so that a reader gets on."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if total > PAGE_BYTES and count:
            return count
    return len(sizes)


async def page_of_referrers(
    database: Database, repository: str, subject: Digest, artifact_type: str, last: str, limit: int
) -> tuple[list[Referrer], bool]:
    """Those after `last` by digest, of this artifact type ("": of any), and whether more follow. At most `limit`, and
    no more than fit in `PAGE_BYTES`."""
    m = manifests.c
    listed = (
        select(children.c.child)
        .join(tags, and_(tags.c.repository == children.c.repository, tags.c.digest == children.c.manifest))
        .where(tags.c.repository == repository, tags.c.tag == referrers_tag(subject))
    )
    about = or_(m.subject == str(subject), and_(m.subject == "", m.digest.in_(listed)))
    # The annotations are shorter than the manifest, whose bytes SQLite can count without reading them.
    query = select(m.digest, func.length(m.raw).label("size")).where(m.repository == repository, m.digest > last, about)
    if artifact_type:
        query = query.where(m.artifact_type == artifact_type)
    async with database.read() as tx:
        sizes = (await tx.execute(query.order_by(m.digest).limit(limit + 1))).all()
        count = min(fitting([row.size + ENTRY_BYTES for row in sizes]), limit)
        wanted = [row.digest for row in sizes[:count]]
        row_query = select(m.digest, m.media_type, func.length(m.raw).label("size"), m.artifact_type, m.annotations)
        row_query = row_query.where(m.repository == repository, m.digest.in_(wanted)).order_by(m.digest)
        rows = (await tx.execute(row_query)).all() if wanted else []
    found = [Referrer(row.digest, row.media_type, row.size, row.artifact_type, row.annotations) for row in rows]
    return found, len(sizes) > count > 0
