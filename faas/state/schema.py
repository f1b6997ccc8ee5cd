"""Brings a database to the tables of this version (Alembic, scripts in `migrations/`)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from faas import __version__
from faas.errors import InvalidInput

MIGRATIONS = Path(__file__).parent / "migrations"


def versions(migrations: Path = MIGRATIONS) -> frozenset[str]:
    """Every version of the schema that the scripts in `migrations` know."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    return frozenset(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())


def migrate(connection: Connection, migrations: Path = MIGRATIONS) -> None:
    """Run what is missing of the scripts in `migrations`, within the caller's transaction.

    Raises InvalidInput on a database that a newer version wrote.
    """
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_heads()
    if present and set(present) == set(scripts.get_heads()):
        return  # as at nearly every start
    known = versions(migrations)
    if unknown := [revision for revision in present if revision not in known]:
        raise InvalidInput(
            f"the database was written by a newer version of faas: its schema is {', '.join(unknown)}, "
            f"and faas {__version__} knows {max(known)} at most",
            hint="start that version again, or restore a backup from before it: a downgrade is not possible",
        )
    command.upgrade(config, "head")
