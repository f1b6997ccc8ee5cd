"""The tables of who there is and what opens, and of who changed what. `faas.state.tables` has all the others."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from faas.state.columns import metadata
from faas.state.columns import name as _name

tokens = Table(
    "tokens",
    metadata,
    _name("namespace", key=True),  # "*" for all
    _name("name", key=True),
    Column("role", String(16), nullable=False),
    Column("functions", Text, nullable=False),  # JSON list; empty: all
    Column("repositories", Text, nullable=False, server_default="[]"),  # JSON list of patterns; empty: all
    Column("hash", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("user", String(128), nullable=False, server_default=""),  # "" where it stands alone
    Column("created_by", String(128), nullable=False, server_default=""),
    Column("expires_at", Float),
    Column("last_used_at", Float),
    Column("old_hash", String(64)),  # of the one before the last rotation, until then
    Column("old_expires_at", Float),
    UniqueConstraint("name"),  # a token's name is also the user name of Basic credentials
    UniqueConstraint("hash"),
)

# People and machines that have tokens. They are of the whole server; what they may is of namespaces.
users = Table(
    "users",
    metadata,
    _name("name", key=True),
    Column("created_at", Float, nullable=False),
    Column("created_by", String(128), nullable=False),
)

user_roles = Table(
    "user_roles",
    metadata,
    _name("namespace", key=True),  # "*" for all
    _name("user", key=True),
    Column("role", String(16), nullable=False),
    ForeignKeyConstraint(["user"], ["users.name"], ondelete="CASCADE"),
)

# Who changed what: a chain (`faas.audit`). Triggers keep rows from being changed, and from going but at the beginning.
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),  # Unix milliseconds
    Column("by", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("object", Text, nullable=False),
    Column("outcome", String(16), nullable=False),  # done | refused | failed | unknown
    Column("status", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("count", Integer, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index(None, "at"),
    Index(None, "by", "seq"),
    Index(None, "namespace", "seq"),
)

# The chain's ends: the record before the first that is kept, and the newest.
audit_ends = Table(
    "audit_ends",
    metadata,
    Column("name", String(16), primary_key=True),  # first | last
    Column("seq", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("at", BigInteger, nullable=False),
)
