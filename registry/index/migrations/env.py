"""Alembic's environment: the connection is the caller's, and so is its transaction."""

from __future__ import annotations

from alembic import context

from registry.index.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
)
context.run_migrations()
