"""Leases on blobs, and blobs on their way out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("repository_blobs", sa.Column("leased_until", sa.Float(), nullable=False, server_default="0"))
    op.add_column("blobs", sa.Column("leaving", sa.Boolean(), nullable=False, server_default=sa.false()))
