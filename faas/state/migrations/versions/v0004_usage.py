"""What functions used, and budgets for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SUMS = ("requests", "errors", "cold_starts", "duration_us", "billed_ms", "mb_ms", "max_memory_bytes")


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("function", sa.String(128), nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in SUMS),
        sa.PrimaryKeyConstraint("namespace", "function", "hour", name="pk_usage"),
    )
    op.create_index("ix_usage_hour", "usage", ["hour"])
    op.create_table(
        "budgets",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("function", sa.String(128), nullable=False),
        sa.Column("unit", sa.String(16), nullable=False),
        sa.Column("amount", sa.Text(), nullable=False),
        sa.Column("warn", sa.Integer(), nullable=False),
        sa.Column("throttle", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_budgets"),
    )
