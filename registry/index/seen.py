"""Which repository sees which blob: what a push and a pull ask for every blob, each in one go in a thread.

The statements are made once: making one costs more than SQLite needs to run it.
"""

from __future__ import annotations

from sqlalchemy import BindParameter, Connection, Table, bindparam, select, update
from sqlalchemy.dialects.sqlite import insert

from faas.oci.reference import namespace_of
from registry.index.tables import blobs, children, manifests, repositories, repository_blobs

_REPOSITORY: BindParameter[str] = bindparam("in_repository")
_DIGEST: BindParameter[str] = bindparam("of_digest")
_HERE = (repository_blobs.c.repository == _REPOSITORY, repository_blobs.c.digest == _DIGEST)

_ADD_REPOSITORY = insert(repositories).on_conflict_do_nothing()
_ADD_BLOB = insert(blobs)
_ADD_BLOB = _ADD_BLOB.on_conflict_do_update(
    index_elements=["digest"],
    set_={"leaving": False, "checked_at": _ADD_BLOB.excluded.checked_at, "damaged_at": None},
)
_LINK = insert(repository_blobs)
_LINK = _LINK.on_conflict_do_update(
    index_elements=["repository", "digest"], set_={"leased_until": _LINK.excluded.leased_until}
)
_SIZE = select(blobs.c.size).join(repository_blobs, repository_blobs.c.digest == blobs.c.digest).where(*_HERE)
_NEEDED = update(repository_blobs).values(awaited=False)
_NEEDED = _NEEDED.where(
    repository_blobs.c.repository == _REPOSITORY,
    repository_blobs.c.awaited,
    repository_blobs.c.digest.in_(
        select(children.c.child).where(children.c.repository == _REPOSITORY, children.c.manifest == _DIGEST)
    ),
)


def add(connection: Connection, repository: str, digest: str, size: int, now: float, leased_until: float) -> None:
    """A blob whose file has just been written and hashed; the repository sees it from here on."""
    add_repository(connection, repository, now)
    row = {"digest": digest, "size": size, "created_at": now, "leaving": False, "checked_at": now}
    connection.execute(_ADD_BLOB, row)
    link(connection, repository, digest, now, leased_until)


def add_repository(connection: Connection, repository: str, now: float) -> None:
    row = {"name": repository, "namespace": namespace_of(repository), "created_at": now}
    connection.execute(_ADD_REPOSITORY, row)


def link(connection: Connection, repository: str, digest: str, now: float, leased_until: float) -> None:
    """The repository sees the blob from here on; a manifest that needs it has the lease's time to come."""
    row = {"repository": repository, "digest": digest, "created_at": now, "leased_until": leased_until, "awaited": True}
    connection.execute(_LINK, row)


def size_of(connection: Connection, repository: str, digest: str) -> int | None:
    """Bytes; None where the repository does not see it."""
    return connection.execute(_SIZE, _where(repository, digest)).scalar()


def needed(connection: Connection, repository: str, manifest: str) -> None:
    """The manifest that its blobs were awaiting has come."""
    connection.execute(_NEEDED, _where(repository, manifest))


class Leased:
    """Rows that stay for a while because a client counts on them."""

    def __init__(self, table: Table) -> None:
        here = (table.c.repository == _REPOSITORY, table.c.digest == _DIGEST)
        self._until = select(table.c.leased_until).where(*here)
        self._lease = update(table).where(*here).values(leased_until=bindparam("until"))

    def leased_until(self, connection: Connection, repository: str, digest: str) -> float | None:
        """None: there is no such row."""
        return connection.execute(self._until, _where(repository, digest)).scalar()

    def lease(self, connection: Connection, repository: str, digest: str, until: float) -> bool:
        """Whether it was still there."""
        return bool(connection.execute(self._lease, {**_where(repository, digest), "until": until}).rowcount)


BLOB, MANIFEST = Leased(repository_blobs), Leased(manifests)


def _where(repository: str, digest: str) -> dict[str, str]:
    return {"in_repository": repository, "of_digest": digest}
