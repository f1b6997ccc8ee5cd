"""`Database`: one writer at a time, readers beside it (SQLite in WAL mode), every transaction short.

async with database.write() as tx: …     one at a time, committed (fsynced) when the block ends
async with database.read() as tx: …      a consistent view
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from faas.errors import Conflict, FaasError, Unavailable
from faas.state import engine, schema

Transaction = AsyncConnection


class Database:
    """Opened with `open`, closed with `close`."""

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()  # SQLite has one writer; waiting here is fair, waiting in SQLite is not

    @classmethod
    async def open(cls, url: str, migrations: Path = schema.MIGRATIONS) -> Database:
        """Open or create the database at `url` (`sqlite+aiosqlite:///PATH`) and migrate it by these scripts.

        Raises InvalidInput where it was written by a newer version, Unavailable where it cannot be used.
        """
        reader, writer = engine.create(url)
        database = cls(reader, writer)
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


def _translated(error: SQLAlchemyError) -> FaasError:
    if isinstance(error, IntegrityError):
        return Conflict("this would break what the database holds together")
    if isinstance(error, DBAPIError):
        return Unavailable(f"the database cannot be used: {error.orig}", hint="is the disk full, or the file gone?")
    return FaasError(f"the database was asked something it cannot do: {type(error).__name__}")
