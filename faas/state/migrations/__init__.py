"""Alembic's scripts, run at every start by `faas.state.schema`."""
