"""The queue's and the tokens' SQL: claims, lanes, group commit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.leases import Trigger
from faas.spec import TriggerSpec
from faas.state.session import Database, Tx
from gateway.store import dead_letters, functions, invocations, triggers
from gateway.store.invocations import Kind, QueuedEvent
from gateway.store.triggers import SeenFile


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    yield database
    await database.close()


def event(number: int, function: str = "hello", *, not_before: float = 0.0, kind: Kind = Kind.EVENT) -> QueuedEvent:
    return QueuedEvent(f"{function}{number}", "default", function, Trigger.ASYNC, kind, not_before=not_before)


async def claim(database: Database, now: float, room: dict[str, int]) -> tuple[list[str], float | None]:
    """What a claim takes with so much room in each lane."""

    def taken(tx: Tx) -> tuple[list[QueuedEvent], float | None]:
        counts, next_due = invocations.due(tx, now)
        chosen = {lane: min(count, room.get(lane, 0)) for lane, count in counts.items()}
        return invocations.claim(tx, now, chosen), next_due

    claimed, due = await database.change(taken)
    return sorted(e.id for e in claimed), due


async def add(database: Database, *events: QueuedEvent) -> None:
    async with database.write() as tx:
        await tx.run_sync(invocations.add, events)


async def test_a_claim_takes_the_oldest_of_each_lane_within_its_room_and_each_once(database: Database) -> None:
    await add(database, *(event(n) for n in range(4)), *(event(n, "other") for n in range(4)))
    room = {"default/hello": 2, "default/other": 1}
    assert (await claim(database, 10, room))[0] == ["hello0", "hello1", "other0"]
    assert (await claim(database, 10, room))[0] == ["hello2", "hello3", "other1"]
    assert (await claim(database, 10, {"default/hello": 5}))[0] == []


async def test_of_each_lane_it_is_told_how_many_are_due_and_when_the_next_one_is(database: Database) -> None:
    await add(
        database, event(1), event(2), event(3, not_before=50), event(4, "other"), event(5, "later", not_before=20)
    )
    told = await database.ask(lambda tx: invocations.due(tx, 10))
    assert told == ({"default/hello": 2, "default/other": 1}, 20)


async def test_a_claim_says_when_the_next_row_falls_due(database: Database) -> None:
    await add(database, event(1), event(2, not_before=50), event(3, not_before=40), event(4, "other", not_before=20))
    room = {"default/hello": 5}
    assert await claim(database, 10, room) == (["hello1"], 20)
    assert await claim(database, 45, room) == (["hello3"], 50)
    assert await claim(database, 50, room) == (["hello2"], None)


async def test_what_was_running_is_pending_after_recovery_and_what_ended_is_not(database: Database) -> None:
    await add(database, event(1), event(2))
    await claim(database, 10, {"default/hello": 5})
    async with database.write() as tx:
        done = event(2)
        await tx.run_sync(
            invocations.end, QueuedEvent(done.id, "default", "hello", Trigger.ASYNC, status="success", ended_at=1)
        )
        assert await tx.run_sync(invocations.backlog) == {("default", "hello"): 1}
        await tx.run_sync(invocations.recover)
    assert (await claim(database, 10, {"default/hello": 5}))[0] == ["hello1"]


async def test_files_and_callbacks_have_lanes_of_their_own(database: Database) -> None:
    await add(database, event(1), event(2, kind=Kind.FILE), event(3, kind=Kind.CALLBACK))
    assert (await claim(database, 10, {"default/hello#files": 1}))[0] == ["hello2"]
    assert (await claim(database, 10, {"default/hello#callbacks": 1}))[0] == ["hello3"]


async def bury(database: Database, *letters: tuple[int, str, float]) -> list[int]:
    """Add dead letters (number, function, when); how many older ones each pushed out."""
    async with database.write() as tx:
        return [await tx.run_sync(dead_letters.add, event(n, function), died) for n, function, died in letters]


async def test_of_each_function_the_newest_dead_letters_are_kept(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "KEPT_LETTERS", 3)
    assert await bury(database, *((n, "hello", float(n)) for n in range(5)), (0, "other", 0.0)) == [0, 0, 0, 1, 1, 0]
    async with database.read() as tx:
        kept = [letter.event.id for letter in await tx.run_sync(dead_letters.every)]
    assert kept == ["hello4", "hello3", "hello2", "other0"]


async def test_dead_letters_go_after_two_weeks_and_are_counted(database: Database) -> None:
    day = 86_400.0
    await bury(database, (1, "hello", 0.0), (2, "hello", day), (3, "other", 0.0), (4, "hello", 2 * day))
    async with database.write() as tx:
        assert await tx.run_sync(dead_letters.remove_old, 14 * day) == {}
        assert await tx.run_sync(dead_letters.remove_old, 15.5 * day) == {
            ("default", "hello"): 2,
            ("default", "other"): 1,
        }
        assert [letter.event.id for letter in await tx.run_sync(dead_letters.every)] == ["hello4"]


async def test_files_that_were_seen_are_new_once_and_forgotten_in_their_very_state(database: Database) -> None:
    files = [SeenFile(f"IMG \u00e9'\"{n}.jpg", 1_700_000_000_123_456_789 + n, n) for n in range(1200)]
    async with database.write() as tx:
        await functions.touch(tx, "default", "hello", 1.0)
        first, second = await tx.run_sync(
            triggers.replace, "default", "hello", [TriggerSpec("/a"), TriggerSpec("/b")], 1.0
        )
        assert await tx.run_sync(triggers.see, first, files[:700]) == set(files[:700])
        assert await tx.run_sync(triggers.see, first, files) == set(files[700:])
        assert await tx.run_sync(triggers.see, second, files[:1]) == {files[0]}
        await tx.run_sync(triggers.forget, first, [files[0], SeenFile(files[1].name, 0, 0)])
        assert await tx.run_sync(triggers.seen, first) == set(files[1:])
        assert await tx.run_sync(triggers.seen, second) == {files[0]}
