"""The registry's tables on one page. A blob's row says that its file is there, whole and flushed."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, LargeBinary, MetaData, String, Table, Text

NAMES = {"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s", "ix": "ix_%(column_0_label)s"}
metadata = MetaData(naming_convention=NAMES)

_DIGEST = String(140)
_REPOSITORY = String(255)

repositories = Table(
    "repositories",
    metadata,
    Column("name", _REPOSITORY, primary_key=True),
    Column("namespace", String(128), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
)
blobs = Table(
    "blobs",
    metadata,
    Column("digest", _DIGEST, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("leaving", Boolean, nullable=False, default=False),  # its file is about to be unlinked
)
# Which repository sees which blob: uploaded or mounted there. One file serves all.
repository_blobs = Table(
    "repository_blobs",
    metadata,
    Column("repository", ForeignKey("repositories.name", ondelete="CASCADE"), primary_key=True),
    Column("digest", ForeignKey("blobs.digest"), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("leased_until", Float, nullable=False, default=0.0),  # a client counts on it: not collected before
)
manifests = Table(
    "manifests",
    metadata,
    Column("repository", ForeignKey("repositories.name", ondelete="CASCADE"), primary_key=True),
    Column("digest", _DIGEST, primary_key=True),
    Column("media_type", String(255), nullable=False),
    Column("raw", LargeBinary, nullable=False),  # byte for byte what was pushed
    Column("subject", _DIGEST, nullable=False, default=""),
    Column("artifact_type", Text, nullable=False, default=""),
    Column("annotations", Text, nullable=False, default="{}"),
    Column("created_at", Float, nullable=False),
    Index("ix_manifests_subject", "repository", "subject"),
)
# What a manifest needs: its config and layers, or an index's entries.
children = Table(
    "children",
    metadata,
    Column("repository", _REPOSITORY, primary_key=True),
    Column("manifest", _DIGEST, primary_key=True),
    Column("child", _DIGEST, primary_key=True, index=True),
)
tags = Table(
    "tags",
    metadata,
    Column("repository", ForeignKey("repositories.name", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("updated_at", Float, nullable=False),
)
