"""`Copies`: the rows that are copies from an upstream: ordinary manifests, and tags with an expiry.

A copied manifest's edges are there when what they lead to is not yet: blobs and platforms come when they are asked for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import select

from faas.oci import media_types
from faas.oci.digest import Digest
from faas.state.session import Database
from registry.index.index import StoredManifest, point
from registry.index.tables import children, manifests, tags


@dataclass(frozen=True, slots=True)
class CopiedTag:
    """`checked_at`: when the upstream last said so. `expires_at` None: nobody's copy, pushed here before."""

    digest: str
    checked_at: float
    expires_at: float | None

    def is_fresh(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class Copies:
    database: Database

    async def tag(self, repository: str, tag: str) -> CopiedTag | None:
        async with self.database.read() as tx:
            query = select(tags.c.digest, tags.c.updated_at, tags.c.expires_at)
            row = (await tx.execute(query.where(tags.c.repository == repository, tags.c.tag == tag))).first()
        return None if row is None else CopiedTag(row.digest, row.updated_at, row.expires_at)

    async def confirm(self, repository: str, tag: str, digest: str, expires_at: float) -> bool:
        """The upstream says that `tag` names `digest`: whether that manifest is here, and the tag now names it."""
        here = select(manifests.c.digest).where(manifests.c.repository == repository, manifests.c.digest == digest)
        async with self.database.write() as tx:
            if (await tx.execute(here)).first() is None:
                return False
            await point(tx, repository, tag, digest, time.time(), expires_at)
        return True

    async def naming(self, repository: str, blob: Digest) -> StoredManifest | None:
        """An image manifest of this repository that needs this blob."""
        edges = select(children.c.manifest).where(children.c.repository == repository, children.c.child == str(blob))
        query = select(manifests.c.digest, manifests.c.media_type, manifests.c.raw).where(
            manifests.c.repository == repository,
            manifests.c.digest.in_(edges),
            manifests.c.media_type.in_(media_types.MANIFESTS),
        )
        async with self.database.read() as tx:
            row = (await tx.execute(query.limit(1))).first()
        return None if row is None else StoredManifest(Digest.parse(row.digest), row.media_type, row.raw)
