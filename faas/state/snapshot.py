"""Copies of databases that serve, all of one moment: SQLite's backup API over read transactions that are pinned while
nobody writes to any of them. Writers wait for that moment and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from faas.background import to_its_end
from faas.errors import StorageFull, Unavailable
from faas.state.engine import BUSY_MILLISECONDS
from faas.state.session import Database

PAGES = 256  # copied at once: 1 MiB of SQLite's usual pages
REST_SECONDS = 0.002  # after each of them: the disk is everybody's
T = TypeVar("T")


async def copy(databases: Mapping[str, Database], folder: Path) -> dict[str, str]:
    """Copy each database to a file of its name in `folder`; the schema's version of each. Raises StorageFull,
    Unavailable."""
    schemas: dict[str, str] = {}
    async with _pinned(databases) as connections:
        for name, connection in connections.items():
            schemas[name] = await _in_thread(partial(_copy, connection, folder / name))
    return schemas


@contextlib.asynccontextmanager
async def _pinned(databases: Mapping[str, Database]) -> AsyncIterator[dict[str, sqlite3.Connection]]:
    """A connection to each, within a read transaction that sees the same moment as the others'."""
    with contextlib.ExitStack() as stack:
        found: dict[str, sqlite3.Connection] = {}
        async with contextlib.AsyncExitStack() as turns:
            for database in databases.values():  # always in this order: nobody else holds two
                await turns.enter_async_context(database.write())
            for name, database in databases.items():
                found[name] = await _in_thread(partial(_pin, database.file))
                stack.enter_context(contextlib.closing(found[name]))
        yield found


def _pin(file: Path) -> sqlite3.Connection:
    """Blocking."""
    uri = f"{file.absolute().as_uri()}?mode=rw"  # rw: a reader of a write-ahead log writes to its index
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_MILLISECONDS / 1000
    )
    try:
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on it sees this moment
    except BaseException:
        connection.close()
        raise
    return connection


def _copy(source: sqlite3.Connection, to: Path) -> str:
    """Blocking. The schema's version."""
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(to, isolation_level=None)) as target:
        source.backup(target, pages=PAGES, progress=lambda *_: time.sleep(REST_SECONDS))
        target.execute("PRAGMA journal_mode=DELETE")  # one file, whole, with nothing beside it
    row = source.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0])


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await to_its_end(asyncio.to_thread(work))
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFull(
                "the data folder's disk has no room for copies of the databases", hint="give it more room"
            ) from None
        raise Unavailable(f"the databases cannot be copied: {error}") from None
