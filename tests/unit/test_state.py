"""The gateway's database: what is committed stays, what is not is gone, and versions do not mix."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, insert, select, text

from faas.errors import Conflict, InvalidInput, Unavailable
from faas.state import schema
from faas.state.session import Database
from faas.state.tables import functions, metadata
from registry.index import tables
from registry.index.index import MIGRATIONS

ROW = {"namespace": "default", "name": "hello", "created_at": 1.0, "updated_at": 1.0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "faas.db"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{path}")
    yield database
    await database.close()


async def names(database: Database) -> list[str]:
    async with database.read() as tx:
        return list((await tx.execute(select(functions.c.name))).scalars())


@pytest.mark.parametrize(
    ("migrations", "page"), [(schema.MIGRATIONS, metadata), (MIGRATIONS, tables.metadata)], ids=["gateway", "registry"]
)
async def test_migrations_make_exactly_the_tables_of_the_page(tmp_path: Path, migrations: Path, page: MetaData) -> None:
    def difference(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), page))

    opened = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'some.db'}", migrations)
    try:
        async with opened.read() as tx:
            assert await tx.run_sync(difference) == []
    finally:
        await opened.close()


OF_THE_SERVER = {"users", "audit", "audit_ends"}  # who there is, and what was done by them, anywhere


def test_every_table_is_keyed_by_namespace() -> None:
    first = {name: next(iter(table.primary_key.columns)).name for name, table in metadata.tables.items()}
    assert {name for name, column in first.items() if column != "namespace"} == OF_THE_SERVER


async def test_the_file_is_durable_and_checked(database: Database) -> None:
    async with database.write() as tx:
        found = {
            name: (await tx.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


async def test_a_second_open_keeps_what_was_written(database: Database, path: Path) -> None:
    async with database.write() as tx:
        await tx.execute(insert(functions).values(ROW))
    again = await Database.open(f"sqlite+aiosqlite:///{path}")
    assert await names(again) == ["hello"]
    await again.close()


async def test_a_newer_versions_database_is_refused_in_clear_words(path: Path) -> None:
    await (await Database.open(f"sqlite+aiosqlite:///{path}")).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(InvalidInput, match="newer version of faas"):
        await Database.open(f"sqlite+aiosqlite:///{path}")


async def test_a_block_that_raises_writes_nothing(database: Database) -> None:
    async def work() -> None:
        async with database.write() as tx:
            await tx.execute(insert(functions).values(ROW))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    assert await names(database) == []


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(Unavailable):
        async with database.read() as tx:
            await tx.execute(insert(functions).values(ROW))


async def test_a_broken_key_is_a_conflict(database: Database) -> None:
    async def work() -> None:
        async with database.write() as tx:
            await tx.execute(insert(functions).values([ROW, ROW]))

    with pytest.raises(Conflict):
        await work()


async def until_threads_end() -> None:
    """A connection that could not be made ends its thread by itself, which tells the loop: it must still be there."""
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be used"):
        await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'nowhere' / 'faas.db'}")
    await until_threads_end()


async def test_writers_take_turns_and_readers_go_on(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.write() as tx:
            count = len((await tx.execute(select(functions.c.name))).all())
            await tx.execute(insert(functions).values(ROW | {"name": f"f{count}"}))

    async def look() -> None:
        for _ in range(20):
            await names(database)

    await asyncio.gather(look(), *(add(n) for n in range(20)))
    assert len(await names(database)) == 20


async def test_a_cancelled_writer_leaves_the_database_usable(database: Database) -> None:
    for delay in (0.0, 0.0005, 0.001, 0.002, 0.004):

        async def work() -> None:
            async with database.write() as tx:
                for number in range(50):
                    await tx.execute(insert(functions).values(ROW | {"name": f"f{number}"}))
                await asyncio.sleep(1)

        task = asyncio.create_task(work())
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await names(database) == []
    async with database.write() as tx:
        await tx.execute(insert(functions).values(ROW))
    assert await names(database) == ["hello"]


async def test_changes_that_wait_together_are_committed_together_and_fail_alone(database: Database) -> None:
    def add(name: str) -> Callable[[Connection], str]:
        def work(tx: Connection) -> str:
            tx.execute(insert(functions).values({**ROW, "name": name}))
            if name == "raises":
                raise ValueError(name)
            return name

        return work

    wanted = [database.change(add(name)) for name in ("a", "b", "raises", "a", "c")]
    done = await asyncio.gather(*wanted, return_exceptions=True)
    assert [type(one) for one in done] == [str, str, ValueError, Conflict, str]
    assert sorted(await names(database)) == ["a", "b", "c"]


async def test_a_change_whose_caller_goes_away_is_whole_or_was_never_begun(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(tx: Connection) -> None:
        begun.set()
        go_on.wait(10)
        tx.execute(insert(functions).values({**ROW, "name": "begun"}))

    first = asyncio.create_task(database.change(slow))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(database.change(lambda tx: tx.execute(insert(functions).values(ROW))))
    await asyncio.sleep(0.01)
    first.cancel()
    second.cancel()
    await asyncio.sleep(0.01)
    assert not first.done()  # it has the turn until its end
    go_on.set()
    await asyncio.gather(first, second, return_exceptions=True)
    assert first.cancelled()
    assert second.cancelled()
    assert await names(database) == ["begun"]
    await database.change(lambda tx: tx.execute(insert(functions).values({**ROW, "name": "after"})))
    assert sorted(await names(database)) == ["after", "begun"]


async def test_who_goes_along_is_not_lost_with_the_one_that_led(database: Database) -> None:
    gates = [threading.Event(), threading.Event()]
    begun = [threading.Event(), threading.Event()]

    def slow(number: int) -> Callable[[Connection], None]:
        def work(tx: Connection) -> None:
            begun[number].set()
            gates[number].wait(10)

        return work

    first = asyncio.create_task(database.change(slow(0)))
    await asyncio.to_thread(begun[0].wait, 10)
    leader = asyncio.create_task(database.change(slow(1)))
    await asyncio.sleep(0)
    along = asyncio.create_task(database.change(lambda tx: tx.execute(insert(functions).values(ROW)) and "done"))
    await asyncio.sleep(0)
    gates[0].set()
    await asyncio.to_thread(begun[1].wait, 10)
    leader.cancel()
    gates[1].set()
    async with asyncio.timeout(5):
        assert await along == "done"
    await asyncio.gather(first, leader, return_exceptions=True)
    assert leader.cancelled()
    assert await names(database) == ["hello"]
