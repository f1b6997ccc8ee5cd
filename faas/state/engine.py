"""The engines over one SQLite file: one writing connection and a few readers, for the event loop and for threads."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

READERS = 4
BUSY_MILLISECONDS = 10_000  # another process (a backup) may hold the file for a moment
POOL: dict[str, Any] = {"max_overflow": 0, "pool_timeout": 30.0}
READS_ONLY = ("PRAGMA query_only=ON",)

# FULL: the write-ahead log is fsynced at every commit, so that what was acknowledged survives a power cut.
PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    f"PRAGMA busy_timeout={BUSY_MILLISECONDS}",
)


def create(url: str) -> tuple[AsyncEngine, AsyncEngine]:
    """(reader, writer)."""
    reader = create_async_engine(url, pool_size=READERS, **POOL)
    writer = create_async_engine(url, pool_size=1, **POOL)
    _prepare(reader.sync_engine, "BEGIN", READS_ONLY)
    _prepare(writer.sync_engine, "BEGIN IMMEDIATE", ())
    return reader, writer


def create_blocking(url: str) -> tuple[Engine, Engine]:
    """(reader, writer) of the same file, for use in threads: they connect when they are first used."""
    blocking = url.replace("sqlite+aiosqlite:", "sqlite:", 1)
    reader, writer = (create_engine(blocking, pool_size=n, poolclass=QueuePool, **POOL) for n in (READERS, 1))
    _prepare(reader, "BEGIN", READS_ONLY)
    _prepare(writer, "BEGIN IMMEDIATE", ())
    return reader, writer


def _prepare(engine: Engine, begin: str, more: tuple[str, ...]) -> None:
    def connected(dbapi_connection: Any, record: object) -> None:
        dbapi_connection.isolation_level = None  # the driver must not begin transactions of its own accord
        cursor = dbapi_connection.cursor()
        for pragma in (*PRAGMAS, *more):
            cursor.execute(pragma)
        cursor.close()

    def began(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", began)
