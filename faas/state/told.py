"""The tables of who is told of what goes wrong. `faas.state.tables` has all the others."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKeyConstraint, String, Table, Text

from faas.state.columns import metadata
from faas.state.columns import name as _name

# Who is told of what goes wrong, and which way; secrets stand in it by their names.
notification_targets = Table(
    "notification_targets",
    metadata,
    _name("namespace", key=True),
    _name("name", key=True),
    Column("definition", Text, nullable=False),  # JSON, as `gateway.notify.target.definition` gives it
    Column("changed_at", Float, nullable=False),
)

# What each target was told, so that a restart tells nothing twice and forgets no end.
notification_states = Table(
    "notification_states",
    metadata,
    _name("namespace", key=True),
    _name("target", key=True),
    Column("kind", String(16), primary_key=True),
    Column("of", String(128), primary_key=True),  # the subject's namespace; "" for the machine
    Column("subject", String(300), primary_key=True),
    Column("state", Text, nullable=False),  # JSON, as `gateway.notify.states.State.dump` gives it
    ForeignKeyConstraint(
        ["namespace", "target"], ["notification_targets.namespace", "notification_targets.name"], ondelete="CASCADE"
    ),
)
