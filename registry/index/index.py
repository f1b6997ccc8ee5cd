"""`Index`: the registry's questions to its database, each one short transaction."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from faas.oci.digest import Digest
from faas.oci.manifest import Manifest
from faas.oci.reference import BASES
from faas.state.session import Database, Transaction
from faas.turns import Turns
from registry.index.tables import blobs, children, manifests, repositories, repository_blobs, tag_changes, tags

MIGRATIONS = Path(__file__).parent / "migrations"
LEASE_SECONDS = 24 * 3600.0  # clients skip the upload of what they were told is here, and push the manifest later


@dataclass(frozen=True, slots=True)
class StoredManifest:
    digest: Digest
    media_type: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest whose `subject` is another one."""

    digest: str
    media_type: str
    size: int
    artifact_type: str
    annotations: dict[str, str]


def namespace_of(repository: str) -> str:
    """`team/hello` belongs to `team`; one without a slash, and the runtime bases, to `default`."""
    first, slash, _ = repository.partition("/")
    return first if slash and not repository.startswith(BASES) else "default"


class Index:
    """Rows about blobs, manifests and tags."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.turns: Turns[Digest] = Turns()  # whoever brings a blob's file and row, or takes them, has its turn

    @classmethod
    async def open(cls, url: str) -> Index:
        return cls(await Database.open(url, MIGRATIONS))

    async def close(self) -> None:
        await self.database.close()

    # --- blobs

    async def add_blob(self, repository: str, digest: Digest, size: int) -> None:
        """The file is durable: now the rows. Hold the digest's turn, so that no collection unlinks the file between."""
        async with self.database.write() as tx:
            await _repository(tx, repository)
            values = {"digest": str(digest), "size": size, "created_at": time.time(), "leaving": False}
            stays = insert(blobs).values(**values)
            await tx.execute(stays.on_conflict_do_update(index_elements=["digest"], set_={"leaving": False}))
            await _link(tx, repository, digest)

    async def mount(self, repository: str, digest: Digest, sources: Iterable[str] | None) -> bool:
        """Make a blob of one of `sources` (None: of any repository) visible in `repository`."""
        async with self.database.write() as tx:
            query = select(repository_blobs.c.repository).where(repository_blobs.c.digest == str(digest))
            if sources is not None:
                query = query.where(repository_blobs.c.repository.in_(list(sources)))
            if (await tx.execute(query.limit(1))).first() is None:
                return False
            await _repository(tx, repository)
            await _link(tx, repository, digest)
        return True

    async def holders_of(self, digest: Digest) -> list[str]:
        """Repositories that see this blob."""
        async with self.database.read() as tx:
            query = select(repository_blobs.c.repository).where(repository_blobs.c.digest == str(digest))
            return [row[0] for row in await tx.execute(query)]

    async def blob_size(self, repository: str, digest: Digest) -> int | None:
        """Bytes of a blob that `repository` sees; None where it does not."""
        async with self.database.read() as tx:
            query = select(blobs.c.size).join(repository_blobs, repository_blobs.c.digest == blobs.c.digest)
            query = query.where(repository_blobs.c.repository == repository, blobs.c.digest == str(digest))
            return (await tx.execute(query)).scalar()

    async def lease(self, repository: str, digest: Digest) -> None:
        """A client was told that this blob is here, and will not bring it: keep it for a while.

        Written only where half of the time is over, since clients ask far more often than they push.
        """
        now = time.time()
        mine = (repository_blobs.c.repository == repository, repository_blobs.c.digest == str(digest))
        short = repository_blobs.c.leased_until < now + LEASE_SECONDS / 2
        async with self.database.read() as tx:
            if (await tx.execute(select(repository_blobs.c.digest).where(*mine, short))).first() is None:
                return
        async with self.database.write() as tx:
            await tx.execute(update(repository_blobs).where(*mine).values(leased_until=now + LEASE_SECONDS))

    async def remove_blob(self, repository: str, digest: Digest) -> bool:
        """Take a blob from this repository; the file stays for the others."""
        async with self.database.write() as tx:
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

    async def put_manifest(self, repository: str, manifest: Manifest, wanted: Iterable[str]) -> str | None:
        """Manifest, edges, tags and what tells of them in one transaction. The digest of a child that is not here,
        or None."""
        async with self.database.write() as tx:
            for descriptor in manifest.blobs:
                if not await _sees(tx, repository, descriptor.digest):
                    return str(descriptor.digest)
            for descriptor in manifest.manifests:
                if not await _has_manifest(tx, repository, descriptor.digest):
                    return str(descriptor.digest)
            await _repository(tx, repository)
            now = time.time()
            values = {
                "repository": repository,
                "digest": str(manifest.digest),
                "media_type": manifest.media_type,
                "raw": manifest.raw,
                "subject": str(manifest.subject.digest) if manifest.subject else "",
                "artifact_type": manifest.artifact_type or (manifest.config.media_type if manifest.config else ""),
                "annotations": json.dumps(manifest.annotations),
                "created_at": now,
            }
            await tx.execute(insert(manifests).values(**values).on_conflict_do_nothing())
            for child in {str(d.digest) for d in (*manifest.blobs, *manifest.manifests)}:
                edge = {"repository": repository, "manifest": str(manifest.digest), "child": child}
                await tx.execute(insert(children).values(**edge).on_conflict_do_nothing())
            for tag in wanted:
                await _point(tx, repository, tag, str(manifest.digest), now)
        return None

    async def manifest(self, repository: str, reference: str) -> StoredManifest | None:
        """By tag or by digest."""
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
        return None if row is None else StoredManifest(Digest.parse(digest), row.media_type, row.raw)

    async def remove_tag(self, repository: str, tag: str) -> bool:
        async with self.database.write() as tx:
            done = await tx.execute(delete(tags).where(tags.c.repository == repository, tags.c.tag == tag))
            return bool(done.rowcount)

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

    async def repository_names(self, last: str, limit: int, namespace: str | None) -> list[str]:
        async with self.database.read() as tx:
            query = select(repositories.c.name).where(repositories.c.name > last)
            if namespace is not None:
                query = query.where(repositories.c.namespace == namespace)
            return [row[0] for row in await tx.execute(query.order_by(repositories.c.name).limit(limit))]

    async def referrers(self, repository: str, subject: Digest) -> list[Referrer]:
        async with self.database.read() as tx:
            query = select(manifests).where(manifests.c.repository == repository, manifests.c.subject == str(subject))
            rows = (await tx.execute(query.order_by(manifests.c.digest))).all()
        return [
            Referrer(row.digest, row.media_type, len(row.raw), row.artifact_type, json.loads(row.annotations))
            for row in rows
        ]


async def _repository(tx: Transaction, name: str) -> None:
    row = {"name": name, "namespace": namespace_of(name), "created_at": time.time()}
    await tx.execute(insert(repositories).values(**row).on_conflict_do_nothing())


async def _link(tx: Transaction, repository: str, digest: Digest) -> None:
    """The repository sees the blob from here on; a manifest that needs it has the lease's time to come."""
    now = time.time()
    row = {"repository": repository, "digest": str(digest), "created_at": now, "leased_until": now + LEASE_SECONDS}
    linked = insert(repository_blobs).values(**row)
    renewed = {"leased_until": row["leased_until"]}
    await tx.execute(linked.on_conflict_do_update(index_elements=["repository", "digest"], set_=renewed))


async def _point(tx: Transaction, repository: str, tag: str, digest: str, now: float) -> None:
    """A tag that names this digest already has not changed, and nobody is told."""
    mine = (tags.c.repository == repository, tags.c.tag == tag)
    before = (await tx.execute(select(tags.c.digest).where(*mine))).scalar()
    row = {"repository": repository, "tag": tag, "digest": digest, "updated_at": now}
    moved = insert(tags).values(**row)
    moved = moved.on_conflict_do_update(
        index_elements=["repository", "tag"], set_={"digest": digest, "updated_at": now}
    )
    await tx.execute(moved)
    if before != digest:
        change = {"repository": repository, "tag": tag, "digest": digest, "changed_at": now}
        await tx.execute(insert(tag_changes).values(**change))


async def _sees(tx: Transaction, repository: str, digest: Digest) -> bool:
    query = select(repository_blobs.c.digest).where(
        repository_blobs.c.repository == repository, repository_blobs.c.digest == str(digest)
    )
    return (await tx.execute(query)).first() is not None


async def _has_manifest(tx: Transaction, repository: str, digest: Digest) -> bool:
    query = select(manifests.c.digest).where(manifests.c.repository == repository, manifests.c.digest == str(digest))
    return (await tx.execute(query)).first() is not None
