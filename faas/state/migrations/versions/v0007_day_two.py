"""What many people on one server need: secrets, users, the audit log, notifications."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _failed_deploys()
    _users()
    _audit()
    _secrets()
    _notifications()


def _secrets() -> None:
    op.create_table(
        "secrets",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("set_at", sa.Float(), nullable=False),
        sa.Column("set_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_secrets"),
    )


def _failed_deploys() -> None:
    op.create_table(
        "failed_deploys",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("function", sa.String(128), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("code", sa.String(128), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("message", "hint", "log_tail", "image", "by")),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("live", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "function", name="pk_failed_deploys"),
        sa.ForeignKeyConstraint(
            ["namespace", "function"],
            ["functions.namespace", "functions.name"],
            ondelete="CASCADE",
            name="fk_failed_deploys_functions",
        ),
    )


def _users() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    op.create_table(
        "user_roles",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("user", sa.String(128), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "user", name="pk_user_roles"),
        sa.ForeignKeyConstraint(["user"], ["users.name"], ondelete="CASCADE", name="fk_user_roles_users"),
    )
    op.add_column("tokens", sa.Column("user", sa.String(128), nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("created_by", sa.String(128), nullable=False, server_default=""))
    op.add_column("tokens", sa.Column("expires_at", sa.Float(), nullable=True))
    op.add_column("tokens", sa.Column("last_used_at", sa.Float(), nullable=True))
    op.add_column("tokens", sa.Column("old_hash", sa.String(64), nullable=True))
    op.add_column("tokens", sa.Column("old_expires_at", sa.Float(), nullable=True))


def _audit() -> None:
    texts = ("by", "token", "address", "action", "namespace", "object")
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_by_seq", "audit", ["by", "seq"])
    op.create_index("ix_audit_namespace_seq", "audit", ["namespace", "seq"])
    op.create_table(
        "audit_ends",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_audit_ends"),
    )
    op.execute(
        "CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END"
    )
    op.execute(
        "CREATE TRIGGER audit_goes_at_its_beginning BEFORE DELETE ON audit "
        "WHEN OLD.seq > coalesce((SELECT seq FROM audit_ends WHERE name = 'first'), 0) "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is only cut at its beginning'); END"
    )


def _notifications() -> None:
    op.create_table(
        "notification_targets",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("definition", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_notification_targets"),
    )
    op.create_table(
        "notification_states",
        sa.Column("namespace", sa.String(128), nullable=False),
        sa.Column("target", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("of", sa.String(128), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "target", "kind", "of", "subject", name="pk_notification_states"),
        sa.ForeignKeyConstraint(
            ["namespace", "target"],
            ["notification_targets.namespace", "notification_targets.name"],
            ondelete="CASCADE",
            name="fk_notification_states_notification_targets",
        ),
    )
