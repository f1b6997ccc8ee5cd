"""What became of the last push of the tag that a function follows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "follows",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("function", sa.String(128), nullable=False),
        sa.Column("tag", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(140), nullable=False),
        sa.Column("moved_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function"],
            ["functions.namespace", "functions.name"],
            name="fk_follows_functions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", name="pk_follows"),
    )
