"""Policies, retention rules, quotas, changes of tags, and when a blob was last checked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("blobs", sa.Column("checked_at", sa.Float(), nullable=False, server_default="0"))
    op.create_index("ix_blobs_checked_at", "blobs", ["checked_at"])
    op.add_column("blobs", sa.Column("damaged_at", sa.Float()))
    op.create_index("ix_blobs_damaged_at", "blobs", ["damaged_at"])
    op.add_column("repository_blobs", sa.Column("awaited", sa.Boolean(), nullable=False, server_default="0"))
    op.add_column("manifests", sa.Column("leased_until", sa.Float(), nullable=False, server_default="0"))
    op.add_column("manifests", sa.Column("untagged_at", sa.Float(), nullable=False, server_default="0"))
    op.execute("UPDATE manifests SET untagged_at = created_at")
    op.create_index("ix_repository_blobs_digest", "repository_blobs", ["digest"])
    op.drop_index("ix_children_child", "children")
    op.create_index("ix_children_child", "children", ["child", "repository", "manifest"])
    op.add_column("tags", sa.Column("expires_at", sa.Float()))
    op.create_index("ix_tags_digest", "tags", ["repository", "digest"])
    op.create_table(
        "tag_changes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("repository", sa.String(255), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(140), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tag_changes"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "policies",
        sa.Column("pattern", sa.String(255), nullable=False),
        sa.Column("public", sa.Boolean(), nullable=False),
        sa.Column("sparse", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pattern", name="pk_policies"),
    )
    op.create_table(
        "retention_rules",
        sa.Column("pattern", sa.String(255), nullable=False),
        sa.Column("keep_last", sa.Integer()),
        sa.Column("keep_days", sa.Float()),
        sa.Column("untagged_days", sa.Float()),
        sa.Column("immutable", sa.Boolean(), nullable=False),
        sa.Column("movable", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pattern", name="pk_retention_rules"),
    )
    op.create_table(
        "quotas",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("logical_bytes", sa.BigInteger()),
        sa.Column("physical_bytes", sa.BigInteger()),
        sa.PrimaryKeyConstraint("namespace", name="pk_quotas"),
    )
