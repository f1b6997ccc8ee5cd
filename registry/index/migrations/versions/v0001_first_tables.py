"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "repositories",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_repositories"),
    )
    op.create_index("ix_repositories_namespace", "repositories", ["namespace"])
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(140), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    op.create_table(
        "repository_blobs",
        sa.Column("repository", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(140), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.name"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"]),
        sa.PrimaryKeyConstraint("repository", "digest", name="pk_repository_blobs"),
    )
    op.create_table(
        "manifests",
        sa.Column("repository", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(140), nullable=False),
        sa.Column("media_type", sa.String(255), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("subject", sa.String(140), nullable=False),
        sa.Column("artifact_type", sa.Text(), nullable=False),
        sa.Column("annotations", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repository", "digest", name="pk_manifests"),
    )
    op.create_index("ix_manifests_subject", "manifests", ["repository", "subject"])
    op.create_table(
        "children",
        sa.Column("repository", sa.String(255), nullable=False),
        sa.Column("manifest", sa.String(140), nullable=False),
        sa.Column("child", sa.String(140), nullable=False),
        sa.PrimaryKeyConstraint("repository", "manifest", "child", name="pk_children"),
    )
    op.create_index("ix_children_child", "children", ["child"])
    op.create_table(
        "tags",
        sa.Column("repository", sa.String(255), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(140), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["repository"], ["repositories.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("repository", "tag", name="pk_tags"),
    )
