"""The two engines over one SQLite file: a writer of one connection, and a few readers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

READERS = 4
BUSY_MILLISECONDS = 10_000  # another process (a backup) may hold the file for a moment
POOL_SECONDS = 30.0

# FULL: the write-ahead log is fsynced at every commit, so that what was acknowledged survives a power cut.
PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_MILLISECONDS}",
)


def create(url: str) -> tuple[AsyncEngine, AsyncEngine]:
    """(reader, writer)."""
    return _engine(url, READERS, "BEGIN", ("PRAGMA query_only=ON",)), _engine(url, 1, "BEGIN IMMEDIATE", ())


def _engine(url: str, connections: int, begin: str, more: tuple[str, ...]) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, pool_timeout=POOL_SECONDS)

    def connected(dbapi_connection: Any, record: object) -> None:
        dbapi_connection.isolation_level = None  # the driver must not begin transactions of its own accord
        cursor = dbapi_connection.cursor()
        for pragma in (*PRAGMAS, *more):
            cursor.execute(pragma)
        cursor.close()

    def began(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", began)
    return engine
