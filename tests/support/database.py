"""The database of a server that is stopped, changed by a test."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def edited(database: Path) -> Iterator[sqlite3.Connection]:
    """Changes to a copy, written over `database` at the end: SQLite itself may not make its files in a folder that is
    another user's and sticky (`fs.protected_regular`), though we are root."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        copy.write_bytes(database.read_bytes())
        connection = sqlite3.connect(copy)
        try:
            with connection:
                yield connection
        finally:
            connection.close()
        with open(database, "r+b") as file:
            file.truncate(file.write(copy.read_bytes()))
