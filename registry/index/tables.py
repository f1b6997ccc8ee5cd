"""The registry's tables on one page. A blob's row says that its file is there, whole and flushed."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

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
    Column("checked_at", Float, nullable=False, default=0.0, index=True),  # when the scrub last hashed its file
    Column("damaged_at", Float, index=True),  # the scrub found its file gone or changed; NULL: whole
)
# Which repository sees which blob: uploaded or mounted there. One file serves all.
repository_blobs = Table(
    "repository_blobs",
    metadata,
    Column("repository", ForeignKey("repositories.name", ondelete="CASCADE"), primary_key=True),
    Column("digest", ForeignKey("blobs.digest"), primary_key=True, index=True),
    Column("created_at", Float, nullable=False),
    Column("leased_until", Float, nullable=False, default=0.0),  # a client counts on it: not collected before
    Column("awaited", Boolean, nullable=False, default=False),  # no manifest has needed it yet: a quota counts it
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
    Column("leased_until", Float, nullable=False, default=0.0),  # as a blob's
    Column("untagged_at", Float, nullable=False, default=0.0),  # when it was pushed last, or a tag was taken from it
    Index("ix_manifests_subject", "repository", "subject"),
)
# What a manifest needs: its config and layers, or an index's entries.
children = Table(
    "children",
    metadata,
    Column("repository", _REPOSITORY, primary_key=True),
    Column("manifest", _DIGEST, primary_key=True),
    Column("child", _DIGEST, primary_key=True),
    Index("ix_children_child", "child", "repository", "manifest"),  # whole: else SQLite walks the repository instead
)
tags = Table(
    "tags",
    metadata,
    Column("repository", ForeignKey("repositories.name", ondelete="CASCADE"), primary_key=True),
    Column("tag", String(128), primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("expires_at", Float),  # of a copy from upstream: asked for again after that; NULL: ours
    Index("ix_tags_digest", "repository", "digest"),
)
# Tags that moved, for whoever follows them: written with the tag, deleted when dealt with.
tag_changes = Table(
    "tag_changes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("repository", _REPOSITORY, nullable=False),
    Column("tag", String(128), nullable=False),
    Column("digest", _DIGEST, nullable=False),
    Column("changed_at", Float, nullable=False),
    sqlite_autoincrement=True,  # an id is never given twice: what was dealt with is forgotten by its id
)
# What holds for the repositories that a pattern fits (`faas.patterns`).
policies = Table(
    "policies",
    metadata,
    Column("pattern", _REPOSITORY, primary_key=True),
    Column("public", Boolean, nullable=False),  # pulled without a login
    Column("sparse", Boolean, nullable=False),  # what a manifest names need not be here
)
retention_rules = Table(
    "retention_rules",
    metadata,
    Column("pattern", _REPOSITORY, primary_key=True),
    Column("keep_last", Integer),  # tags, by when they moved last; NULL: all
    Column("keep_days", Float),  # tags that moved since; NULL: all
    Column("untagged_days", Float),  # manifests without a tag; NULL: the registry's default
    Column("immutable", Boolean, nullable=False),  # a tag that is there does not move
    Column("movable", Text, nullable=False),  # JSON list: patterns of tags that do all the same
)
quotas = Table(
    "quotas",
    metadata,
    Column("namespace", String(128), primary_key=True),
    Column("logical_bytes", BigInteger),  # as if every repository had its own copy; NULL: no limit
    Column("physical_bytes", BigInteger),  # a blob counts once for its namespace
)
