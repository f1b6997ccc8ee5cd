"""What stands in front of functions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _plans()
    _maintenance()
    _keys()
    _canaries()
    _apis()
    _websockets()


def _keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("functions", sa.Text(), nullable=False),
        sa.Column("plan", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("last_used_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_api_keys"),
        sa.UniqueConstraint("id", name="uq_api_keys_id"),
    )
    op.create_table(
        "api_key_secrets",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("namespace", "key", "hash", name="pk_api_key_secrets"),
        sa.ForeignKeyConstraint(
            ["namespace", "key"],
            ["api_keys.namespace", "api_keys.name"],
            ondelete="CASCADE",
            name="fk_api_key_secrets_api_keys",
        ),
    )


def _apis() -> None:
    op.create_table(
        "apis",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_apis"),
    )


def _plans() -> None:
    op.create_table(
        "plans",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("rate", sa.Float(), nullable=False),
        sa.Column("burst", sa.Integer(), nullable=False),
        sa.Column("quota", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("functions", sa.Text(), nullable=False),
        sa.Column("apis", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_plans"),
    )
    op.create_table(
        "plan_usage",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("plan", sa.String(128), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "plan", "key", "period", "start", name="pk_plan_usage"),
    )
    op.create_index("ix_plan_usage_start", "plan_usage", ["start"])


def _maintenance() -> None:
    op.create_table(
        "maintenance",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("function", sa.String(128), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("retry_after", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "function", name="pk_maintenance"),
    )


def _canaries() -> None:
    op.create_table(
        "canaries",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("function", sa.String(128), nullable=False),
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("percent", sa.Float(), nullable=False),
        sa.Column("sticky", sa.String(160), nullable=False),
        sa.Column("override", sa.Boolean(), nullable=False),
        sa.Column("limits", sa.String(200), nullable=False),
        sa.Column("began_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "function", "alias", name="pk_canaries"),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "alias"],
            ["aliases.namespace", "aliases.function", "aliases.name"],
            ondelete="CASCADE",
            name="fk_canaries_aliases",
        ),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "number"],
            ["revisions.namespace", "revisions.function", "revisions.number"],
            ondelete="CASCADE",
            name="fk_canaries_revisions",
        ),
    )


def _websockets() -> None:
    op.create_table(
        "websocket_apis",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("path", sa.String(300), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_websocket_apis"),
        sa.UniqueConstraint("path", name="uq_websocket_apis_path"),
    )
