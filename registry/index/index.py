"""`Index`: the registry's questions to its database, each one short transaction."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from faas.errors import Unavailable
from faas.oci.digest import Digest
from faas.oci.manifest import INDEX_DEPTH, Manifest
from faas.state.session import Database, Transaction
from faas.turns import Turns
from registry.index import edges, outbox, seen
from registry.index.quotas import Quotas
from registry.index.tables import blobs, children, manifests, repositories, repository_blobs, tags

log = logging.getLogger("registry.index")

MIGRATIONS = Path(__file__).parent / "migrations"
HASHED_AT_ONCE = 65_536  # bytes of a manifest that are hashed on the loop: 0.1 ms
LEASE_SECONDS = 24 * 3600.0  # clients skip the upload of what they were told is here, and push the manifest later
SEEING = 1000  # repositories with one blob that are named at once
AGAIN = ("media_type", "raw", "leased_until", "untagged_at")  # of a manifest that is pushed again


@dataclass(frozen=True, slots=True)
class StoredManifest:
    digest: Digest
    media_type: str
    raw: bytes

    def is_intact(self) -> bool:
        return Digest.of(self.raw, self.digest.algorithm) == self.digest


class Needed(Exception):
    """A manifest of the repository needs what is to be removed."""

    def __init__(self, manifest: str) -> None:
        super().__init__(manifest)
        self.manifest = manifest


class TagStays(Exception):
    """A tag that may not move names another manifest."""

    def __init__(self, tag: str, digest: str) -> None:
        super().__init__(tag, digest)
        self.tag = tag
        self.digest = digest


class TooDeep(ValueError):
    """An index over indexes over indexes."""


class Index:
    """Rows about blobs, manifests and tags."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.quotas = Quotas(database)
        self.turns: Turns[Digest] = Turns()  # whoever brings a blob's file and row, or takes them, has its turn
        self.tag_moved: Callable[[], None] | None = None  # called after the commit; None: nobody reads the outbox

    @classmethod
    async def open(cls, url: str) -> Index:
        return cls(await Database.open(url, MIGRATIONS))

    async def close(self) -> None:
        await self.database.close()

    # --- blobs

    async def add_blob(self, repository: str, digest: Digest, size: int, promised: int = 0) -> None:
        """The file is durable: now the rows. Hold the digest's turn, so that no collection unlinks the file between.

        `promised`, here and below: see `Quotas.check`. Raises OverQuota.
        """
        now = time.time()

        def work(tx: Connection) -> None:
            seen.add(tx, repository, str(digest), size, now, now + LEASE_SECONDS)
            self.quotas.check(tx, repository, promised)

        await self.database.change(work)

    async def mount(self, repository: str, digest: Digest, source: str, promised: int = 0) -> bool:
        """Make a blob that `source` sees visible in `repository`. Whether `source` did see it. Raises OverQuota."""
        now, name = time.time(), str(digest)

        def work(tx: Connection) -> bool:
            if seen.size_of(tx, source, name) is None:
                return False
            seen.add_repository(tx, repository, now)
            seen.link(tx, repository, name, now, now + LEASE_SECONDS)
            self.quotas.check(tx, repository, promised)
            return True

        return await self.database.change(work)

    async def seen_by(self, digest: Digest) -> list[str]:
        """Repositories that see this blob, a bounded number of them: an empty config is in every image."""
        async with self.database.read() as tx:
            query = select(repository_blobs.c.repository).where(repository_blobs.c.digest == str(digest))
            return [row[0] for row in await tx.execute(query.limit(SEEING))]

    async def unseen(self, repository: str, digests: Collection[Digest]) -> str | None:
        """The first of these blobs that `repository` does not see."""
        async with self.database.read() as tx:
            return await _missing(tx, repository_blobs, repository, digests)

    async def blob_size(self, repository: str, digest: Digest) -> int | None:
        """Bytes of a blob that `repository` sees; None where it does not."""
        return await self.database.ask(lambda tx: seen.size_of(tx, repository, str(digest)))

    async def lease(self, repository: str, digest: Digest) -> bool:
        """A client is about to be told that this blob is here, and will not bring it: keep it for a while.

        False: a collection has taken it meanwhile. Written only where half of the time is over, since clients ask far
        more often than they push; and where that cannot be, as on a full disk, they are answered all the same: a pull
        must work there, and a collection, which would have to write too, takes nothing.
        """
        return await self._lease(seen.BLOB, repository, digest)

    async def lease_manifest(self, repository: str, digest: Digest) -> bool:
        """The same for a manifest: an index that names it, or a deploy, may follow."""
        return await self._lease(seen.MANIFEST, repository, digest)

    async def _lease(self, kind: seen.Leased, repository: str, digest: Digest) -> bool:
        now, name = time.time(), str(digest)
        until = await self.database.ask(lambda tx: kind.leased_until(tx, repository, name))
        if until is None or until >= now + LEASE_SECONDS / 2:
            return until is not None
        try:
            return await self.database.change(lambda tx: kind.lease(tx, repository, name, now + LEASE_SECONDS))
        except Unavailable as error:
            log.warning("%s@%s is not leased: %s", repository, name, error.message)
            return True

    async def remove_blob(self, repository: str, digest: Digest) -> bool:
        """Take a blob from this repository; the file stays for the others. Whether it was there. Raises Needed."""
        needing = select(children.c.manifest).where(
            children.c.repository == repository, children.c.child == str(digest)
        )
        async with self.database.write() as tx:
            if (manifest := (await tx.execute(needing.limit(1))).scalar()) is not None:
                raise Needed(manifest)
            done = await tx.execute(
                delete(repository_blobs).where(
                    repository_blobs.c.repository == repository, repository_blobs.c.digest == str(digest)
                )
            )
            return bool(done.rowcount)

    async def parents(self, repository: str, digest: str) -> list[str]:
        """Manifests of this repository that need this blob or manifest."""
        async with self.database.read() as tx:
            query = select(children.c.manifest).where(children.c.repository == repository, children.c.child == digest)
            return [row[0] for row in await tx.execute(query)]

    async def total_bytes(self) -> int:
        async with self.database.read() as tx:
            return int((await tx.execute(select(func.coalesce(func.sum(blobs.c.size), 0)))).scalar_one())

    # --- manifests and tags

    async def put_manifest(
        self,
        repository: str,
        manifest: Manifest,
        wanted: Iterable[str],
        *,
        sparse: bool = False,
        expires_at: float | None = None,
        promised: int = 0,
        stays: Callable[[str], bool] | None = None,
    ) -> str | None:
        """Manifest, edges, tags and what tells of them in one transaction. The digest of a child that is not here,
        or None; where `sparse`, children may come later, or never. With `expires_at` the tags are copies of an
        upstream's, and nobody is told that they moved. `stays`: which tags may not move once they are there.
        Raises TagStays, TooDeep, OverQuota."""
        blobs_needed, entries = [d.digest for d in manifest.blobs], [d.digest for d in manifest.manifests]
        async with self.database.write() as tx:
            for table, needed in ((repository_blobs, blobs_needed), (manifests, entries)):
                missing = None if sparse else await _missing(tx, table, repository, needed)
                if missing is not None:
                    return missing
            if entries and ((await tx.execute(edges.depth(repository, map(str, entries)))).scalar() or 0) > INDEX_DEPTH:
                raise TooDeep(f"at most {INDEX_DEPTH} indexes may stand below one another")
            now, name = time.time(), str(manifest.digest)
            await tx.run_sync(seen.add_repository, repository, now)
            values = _row(repository, manifest, now)
            again = {key: values[key] for key in AGAIN}
            written = insert(manifests).values(**values)
            await tx.execute(written.on_conflict_do_update(index_elements=["repository", "digest"], set_=again))
            edge = {"repository": repository, "manifest": name}
            if rows := [{**edge, "child": child} for child in sorted({str(d) for d in (*blobs_needed, *entries)})]:
                await tx.execute(insert(children).on_conflict_do_nothing(), rows)
                await tx.run_sync(seen.needed, repository, name)
            await tx.run_sync(self.quotas.check, repository, promised)
            moved = [tag for tag in wanted if await point(tx, repository, tag, name, now, expires_at, stays)]
            if self.tag_moved is not None and expires_at is None:
                for tag in moved:
                    await outbox.add(tx, repository, tag, name, now)
        if moved and self.tag_moved is not None and expires_at is None:
            self.tag_moved()
        return None

    async def manifest(self, repository: str, reference: str) -> StoredManifest | None:
        """By tag or by digest. One whose bytes went bad in the database is not there: a push mends it."""
        async with self.database.read() as tx:
            digest: str | None = reference
            if ":" not in reference:
                query = select(tags.c.digest).where(tags.c.repository == repository, tags.c.tag == reference)
                digest = (await tx.execute(query)).scalar()
            if digest is None:
                return None
            found = select(manifests.c.media_type, manifests.c.raw).where(
                manifests.c.repository == repository, manifests.c.digest == digest
            )
            row = (await tx.execute(found)).first()
        if row is None:
            return None
        stored = StoredManifest(Digest.parse(digest), row.media_type, row.raw)
        if not (stored.is_intact() if len(row.raw) <= HASHED_AT_ONCE else await asyncio.to_thread(stored.is_intact)):
            log.error("the manifest %s@%s is damaged in the database", repository, digest)
            return None
        return stored

    async def remove_tag(self, repository: str, tag: str) -> bool:
        mine = (tags.c.repository == repository, tags.c.tag == tag)
        async with self.database.write() as tx:
            digest = (await tx.execute(select(tags.c.digest).where(*mine))).scalar()
            if digest is not None:
                await _untag(tx, repository, digest, time.time())
                await tx.execute(delete(tags).where(*mine))
            return digest is not None

    async def remove_manifest(self, repository: str, digest: Digest) -> bool:
        """The manifest, its edges, and every tag to it."""
        async with self.database.write() as tx:
            name = str(digest)
            await tx.execute(delete(tags).where(tags.c.repository == repository, tags.c.digest == name))
            await tx.execute(delete(children).where(children.c.repository == repository, children.c.manifest == name))
            done = await tx.execute(
                delete(manifests).where(manifests.c.repository == repository, manifests.c.digest == name)
            )
            return bool(done.rowcount)

    async def tag_names(self, repository: str, last: str, limit: int) -> list[str] | None:
        """Sorted tags after `last`; None where there is no such repository."""
        async with self.database.read() as tx:
            exists = select(repositories.c.name).where(repositories.c.name == repository)
            if (await tx.execute(exists)).first() is None:
                return None
            query = select(tags.c.tag).where(tags.c.repository == repository, tags.c.tag > last)
            return [row[0] for row in await tx.execute(query.order_by(tags.c.tag).limit(limit))]


def _row(repository: str, manifest: Manifest, now: float) -> dict[str, Any]:
    """Of a manifest that is pushed now."""
    return {
        "repository": repository,
        "digest": str(manifest.digest),
        "media_type": manifest.media_type,
        "raw": manifest.raw,
        "subject": str(manifest.subject.digest) if manifest.subject else "",
        "artifact_type": manifest.artifact_type or (manifest.config.media_type if manifest.config else ""),
        "annotations": json.dumps(manifest.annotations, ensure_ascii=False, separators=(",", ":")),
        "created_at": now,
        "leased_until": now + LEASE_SECONDS,
        "untagged_at": now,
    }


async def point(
    tx: Transaction,
    repository: str,
    tag: str,
    digest: str,
    now: float,
    expires_at: float | None = None,
    stays: Callable[[str], bool] | None = None,
) -> bool:
    """Whether that changed the tag: one that names this digest already has not moved. Raises TagStays."""
    mine = (tags.c.repository == repository, tags.c.tag == tag)
    before = (await tx.execute(select(tags.c.digest).where(*mine))).scalar()
    if before not in (None, digest):
        if stays is not None and stays(tag):
            raise TagStays(tag, before)
        await _untag(tx, repository, before, now)
    new = {"digest": digest, "updated_at": now, "expires_at": expires_at}
    moved = insert(tags).values(repository=repository, tag=tag, **new)
    moved = moved.on_conflict_do_update(index_elements=["repository", "tag"], set_=new)
    await tx.execute(moved)
    return bool(before != digest)


async def _untag(tx: Transaction, repository: str, digest: str, now: float) -> None:
    """A tag leaves this manifest: its time without one begins, should that be its last."""
    here = (manifests.c.repository == repository, manifests.c.digest == digest)
    await tx.execute(update(manifests).where(*here).values(untagged_at=now))


async def _missing(tx: Transaction, table: Table, repository: str, digests: Collection[Digest]) -> str | None:
    """The first of these that `repository` has no row for in `table`."""
    found = set((await tx.execute(edges.here(table, repository, map(str, digests)))).scalars()) if digests else set()
    return next((str(digest) for digest in digests if str(digest) not in found), None)
