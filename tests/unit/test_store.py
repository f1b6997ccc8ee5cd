"""The queue's and the tokens' SQL: claims, lanes, group commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.errors import Conflict, Unavailable
from faas.protocol import Trigger
from faas.state.session import Database, Transaction
from gateway.store import invocations
from gateway.store.commits import GroupCommit
from gateway.store.invocations import Kind, QueuedEvent


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield database
    await database.close()


def event(number: int, function: str = "hello", *, not_before: float = 0.0, kind: Kind = Kind.EVENT) -> QueuedEvent:
    return QueuedEvent(f"{function}{number}", "default", function, Trigger.ASYNC, kind, not_before=not_before)


async def claim(
    database: Database, now: float, room: dict[str, int], most: int = 100
) -> tuple[list[str], float | None]:
    async with database.write() as tx:
        claimed, due = await invocations.claim(tx, now, lambda lane: room.get(lane, 0), most)
    return sorted(e.id for e in claimed), due


async def add(database: Database, *events: QueuedEvent) -> None:
    async with database.write() as tx:
        await invocations.add(tx, events)


async def test_a_claim_takes_the_oldest_of_each_lane_within_its_room_and_each_once(database: Database) -> None:
    await add(database, *(event(n) for n in range(4)), *(event(n, "other") for n in range(4)))
    room = {"default/hello": 2, "default/other": 1}
    assert (await claim(database, 10, room))[0] == ["hello0", "hello1", "other0"]
    assert (await claim(database, 10, room))[0] == ["hello2", "hello3", "other1"]
    assert (await claim(database, 10, {"default/hello": 5}))[0] == []
    assert len((await claim(database, 10, {"default/other": 9}, most=1))[0]) == 1


async def test_a_claim_says_when_the_next_row_of_a_lane_with_room_falls_due(database: Database) -> None:
    await add(database, event(1), event(2, not_before=50), event(3, not_before=40), event(4, "other", not_before=20))
    room = {"default/hello": 5}
    assert await claim(database, 10, room) == (["hello1"], 40)
    assert await claim(database, 45, room) == (["hello3"], 50)
    assert await claim(database, 50, room) == (["hello2"], None)


async def test_no_lane_starves_where_the_whole_bound_is_small(database: Database) -> None:
    await add(database, *(event(n, name) for name in ("a", "b", "c") for n in range(10)))
    room = {f"default/{name}": 10 for name in ("a", "b", "c")}
    served = {name for now in range(3) for name in {found[0] for found in (await claim(database, now, room, 2))[0]}}
    assert served == {"a", "b", "c"}


async def test_what_was_running_is_pending_after_recovery_and_what_ended_is_not(database: Database) -> None:
    await add(database, event(1), event(2))
    await claim(database, 10, {"default/hello": 5})
    async with database.write() as tx:
        done = event(2)
        await invocations.end(tx, QueuedEvent(done.id, "default", "hello", Trigger.ASYNC, status="success", ended_at=1))
        assert await invocations.backlog(tx) == {("default", "hello"): 1}
        await invocations.recover(tx)
    assert (await claim(database, 10, {"default/hello": 5}))[0] == ["hello1"]


async def test_files_and_callbacks_have_lanes_of_their_own(database: Database) -> None:
    await add(database, event(1), event(2, kind=Kind.FILE), event(3, kind=Kind.CALLBACK))
    assert (await claim(database, 10, {"default/hello#files": 1}))[0] == ["hello2"]
    assert (await claim(database, 10, {invocations.CALLBACKS: 1}))[0] == ["hello3"]


async def test_writes_that_come_together_share_a_commit_and_a_bad_one_fails_alone(database: Database) -> None:
    commits = GroupCommit(database)
    await commits.start()
    transactions: set[int] = set()

    def adding(number: int) -> object:
        async def work(tx: Transaction) -> None:
            transactions.add(id(tx))
            await invocations.add(tx, [event(number)])

        return commits.write(work)

    await asyncio.gather(*(adding(n) for n in range(50)))  # type: ignore[call-overload]
    assert len(transactions) < 10
    results = await asyncio.gather(adding(50), adding(7), adding(51), return_exceptions=True)  # type: ignore[call-overload]
    assert [type(result) for result in results] == [type(None), Conflict, type(None)]
    async with database.read() as tx:
        assert await invocations.backlog(tx) == {("default", "hello"): 52}
    await commits.stop()
    with pytest.raises(Unavailable):
        await adding(99)  # type: ignore[misc]
