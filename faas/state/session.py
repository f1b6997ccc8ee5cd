"""`Database`: one writer at a time, readers beside it (SQLite in WAL mode), every transaction short.

async with database.write() as tx: …     one at a time, committed (fsynced) when the block ends
async with database.read() as tx: …      a consistent view

On the event loop each statement is a way to a thread and back. What runs a hundred times a second goes there once:
await database.change(work)              `work(connection)` in one such write transaction, in a thread
await database.ask(work)                 the same for reading
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from faas.errors import Conflict, FaasError, StorageFull, Unavailable
from faas.state import engine, schema

Transaction = AsyncConnection
T = TypeVar("T")


class Database:
    """Opened with `open`, closed with `close`."""

    def __init__(self, url: str) -> None:
        self._reader, self._writer = engine.create(url)
        self._asker, self._changer = engine.create_blocking(url)
        self._threads = ThreadPoolExecutor(engine.READERS + 1, thread_name_prefix="database")
        self._turn = asyncio.Lock()  # SQLite has one writer; waiting here is fair, waiting in SQLite is not

    @classmethod
    async def open(cls, url: str, migrations: Path = schema.MIGRATIONS) -> Database:
        """Open or create the database at `url` (`sqlite+aiosqlite:///PATH`) and migrate it by these scripts.

        Raises InvalidInput where it was written by a newer version, Unavailable where it cannot be used.
        """
        database = cls(url)
        try:
            async with database.write() as tx:
                await tx.run_sync(schema.migrate, migrations)
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        async with self._turn:
            await self._writer.dispose()
            await self._reader.dispose()
            self._threads.shutdown()
            self._asker.dispose()
            self._changer.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """Committed at the end of the block, rolled back where it raises. Raises Conflict, Unavailable."""
        async with self._turn:
            try:
                async with self._writer.begin() as tx:
                    yield tx
            except SQLAlchemyError as error:
                raise _translated(error) from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Sees one state of the database; cannot write. Raises Unavailable."""
        try:
            async with self._reader.begin() as tx:
                yield tx
        except SQLAlchemyError as error:
            raise _translated(error) from error

    async def change(self, work: Callable[[Connection], T]) -> T:
        """Goes on to its end where the caller is cancelled. Raises what `work` does (and nothing has changed then),
        Conflict, Unavailable."""
        async with self._turn:
            return await self._in_thread(self._changer, work)

    async def ask(self, work: Callable[[Connection], T]) -> T:
        """Raises Unavailable."""
        return await self._in_thread(self._asker, work)

    async def _in_thread(self, source: Engine, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            try:
                with source.begin() as connection:
                    return work(connection)
            except SQLAlchemyError as error:
                raise _translated(error) from error

        task = asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._threads, run))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait((task,))  # its transaction is still open: nobody else's turn yet
            raise


def _translated(error: SQLAlchemyError) -> FaasError:
    if isinstance(error, IntegrityError):
        return Conflict("this would break what the database holds together")
    if isinstance(error, DBAPIError):
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StorageFull("the database's disk is full", hint="give the data folder's disk more room")
        return Unavailable(f"the database cannot be used: {error.orig}", hint="is the disk full, or the file gone?")
    return FaasError(f"the database was asked something it cannot do: {type(error).__name__}")
