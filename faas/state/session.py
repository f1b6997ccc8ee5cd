"""`Database`: one writer at a time, readers beside it (SQLite in WAL mode), every transaction short.

async with database.write() as tx: …     one at a time, committed (fsynced) when the block ends
async with database.read() as tx: …      a consistent view

On the event loop each statement is a way to a thread and back. What runs a hundred times a second goes there once:
await database.change(work)              `work(connection)` in one such write transaction, in a thread
await database.ask(work)                 the same for reading
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from faas.background import to_its_end
from faas.errors import Conflict, FaasError, StorageFull, Unavailable
from faas.state import engine, schema

Transaction = AsyncConnection  # of `write` and `read`: each statement is awaited
Tx = Connection  # of `change` and `ask`, and of the store's functions: statements block, in a thread
T = TypeVar("T")
TOGETHER = 64  # changes of one transaction


class Database:
    """Opened with `open`, closed with `close`."""

    def __init__(self, url: str) -> None:
        self.file = Path(url.partition(":///")[2])
        self._reader, self._writer = engine.create(url)
        self._asker, self._changer = engine.create_blocking(url)
        self._waiting: list[Change] = []
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
        """Goes on to its end where the caller is cancelled. Raises what `work` does (and nothing of it has changed
        then), Conflict, Unavailable.

        Who comes while another one is at it goes along in the next transaction: many wait for one fsync.
        """
        ours = Change(work, asyncio.get_running_loop().create_future())
        self._waiting.append(ours)
        try:
            async with self._turn:
                if not ours.done.done():  # nobody has taken it along
                    some, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
                    try:
                        await self._in_thread(lambda: _changed(self._changer, some))
                    finally:  # also where we are cancelled: the others are not
                        for one in some:
                            one.tell()
        finally:
            if ours in self._waiting:
                self._waiting.remove(ours)
            if ours.done.done():
                ours.done.exception()  # heard, also where we are cancelled
        return cast("T", await ours.done)

    async def ask(self, work: Callable[[Connection], T]) -> T:
        """Raises Unavailable."""

        def run() -> T:
            with _translating(), self._asker.begin() as connection:
                return work(connection)

        return await self._in_thread(run)

    async def _in_thread(self, run: Callable[[], T]) -> T:
        # To its end: while its transaction is open it is nobody else's turn.
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._threads, run))


@dataclass(slots=True, eq=False)
class Change:
    """Work that waits for its turn, and what became of it."""

    work: Callable[[Connection], object]
    done: asyncio.Future[object]
    result: object = None
    error: BaseException | None = field(default_factory=lambda: Unavailable("the database is closed"))

    def run(self, connection: Connection) -> None:
        try:
            with _translating():
                self.result = self.work(connection)
            self.error = None
        except BaseException as error:
            self.error = error
            raise

    def tell(self) -> None:
        if self.done.cancelled():
            return
        if self.error is None:
            self.done.set_result(self.result)
        else:
            self.done.set_exception(self.error)


def _changed(source: Engine, changes: Sequence[Change]) -> None:
    """All in one transaction, each undone by itself where it fails; where the commit fails, all have failed."""
    try:
        with _translating(), source.begin() as connection:
            for change in changes:
                try:
                    with connection.begin_nested():
                        change.run(connection)
                except Unavailable:  # SQLite may have undone the whole transaction
                    raise
                except Exception:  # noqa: S112 - its own affair, and told to its caller
                    continue
    except BaseException as error:
        for change in changes:
            change.error = error


@contextlib.contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise _translated(error) from error


def _translated(error: SQLAlchemyError) -> FaasError:
    if isinstance(error, IntegrityError):
        return Conflict("this would break what the database holds together")
    if isinstance(error, DBAPIError):
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return StorageFull("the database's disk is full", hint="give the data folder's disk more room")
        return Unavailable(f"the database cannot be used: {error.orig}", hint="is the disk full, or the file gone?")
    return FaasError(f"the database was asked something it cannot do: {type(error).__name__}")
