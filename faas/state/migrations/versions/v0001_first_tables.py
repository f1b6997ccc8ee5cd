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
        "dead_letters",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("qualifier", sa.String(length=128), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("meta", sa.Text(), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("died_at", sa.Float(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("id", name=op.f("uq_dead_letters_id")),
    )
    op.create_index(
        op.f("ix_dead_letters_namespace_function_died_at"),
        "dead_letters",
        ["namespace", "function", "died_at"],
        unique=False,
    )
    op.create_table(
        "functions",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_functions")),
    )
    op.create_table(
        "invocations",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("qualifier", sa.String(length=128), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("lane", sa.String(length=160), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("meta", sa.Text(), nullable=False),
        sa.Column("callback_url", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("deferrals", sa.Integer(), nullable=False),
        sa.Column("not_before", sa.Float(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "id", name=op.f("pk_invocations")),
        sa.UniqueConstraint("id", name=op.f("uq_invocations_id")),
    )
    op.create_index(op.f("ix_invocations_namespace_function"), "invocations", ["namespace", "function"], unique=False)
    op.create_index(op.f("ix_invocations_status_ended_at"), "invocations", ["status", "ended_at"], unique=False)
    op.create_index(
        op.f("ix_invocations_status_lane_not_before"), "invocations", ["status", "lane", "not_before"], unique=False
    )
    op.create_table(
        "revision_numbers",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "function", name=op.f("pk_revision_numbers")),
    )
    op.create_table(
        "tokens",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("functions", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_tokens_hash")),
        sa.UniqueConstraint("name", name=op.f("uq_tokens_name")),
    )
    op.create_table(
        "revisions",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("image", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("interface", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function"],
            ["functions.namespace", "functions.name"],
            name=op.f("fk_revisions_functions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "number", name=op.f("pk_revisions")),
    )
    op.create_table(
        "schedules",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("timezone", sa.Text(), nullable=False),
        sa.Column("missed", sa.String(length=16), nullable=False),
        sa.Column("overlap", sa.String(length=16), nullable=False),
        sa.Column("input", sa.Text(), nullable=False),
        sa.Column("considered_until", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function"],
            ["functions.namespace", "functions.name"],
            name=op.f("fk_schedules_functions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "name", name=op.f("pk_schedules")),
    )
    op.create_table(
        "triggers",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("watch", sa.Text(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function"],
            ["functions.namespace", "functions.name"],
            name=op.f("fk_triggers_functions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "watch", "pattern", name=op.f("pk_triggers")),
    )
    op.create_table(
        "aliases",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "number"],
            ["revisions.namespace", "revisions.function", "revisions.number"],
            name=op.f("fk_aliases_revisions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "schedule_fires",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("schedule", sa.String(length=128), nullable=False),
        sa.Column("fire_time", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("invocation", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "schedule"],
            ["schedules.namespace", "schedules.function", "schedules.name"],
            name=op.f("fk_schedule_fires_schedules"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "schedule", "fire_time", name=op.f("pk_schedule_fires")),
    )
    op.create_index(op.f("ix_schedule_fires_invocation"), "schedule_fires", ["invocation"], unique=False)
    op.create_table(
        "trigger_files",
        sa.Column("namespace", sa.String(length=128), nullable=False),
        sa.Column("function", sa.String(length=128), nullable=False),
        sa.Column("watch", sa.Text(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "watch", "pattern"],
            ["triggers.namespace", "triggers.function", "triggers.watch", "triggers.pattern"],
            name=op.f("fk_trigger_files_triggers"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "namespace", "function", "watch", "pattern", "name", "mtime_ns", "size", name=op.f("pk_trigger_files")
        ),
    )
