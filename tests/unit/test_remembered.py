"""What an administrator has set: memory and database know the same, also where who asked has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from faas.state.session import Database
from registry.index.index import Index
from registry.index.policies import Policies, Policy
from registry.index.quotas import Quota, Quotas
from registry.index.remembered import Remembered
from registry.index.retention import Rules
from registry.rules import Rule

Kind = Callable[[Database], Remembered[Any]]
KINDS = [
    pytest.param(Policies, Policy(public=True), Policy(sparse=True), id="policies"),
    pytest.param(Rules, Rule(keep_days=1.5, immutable=True, movable=("latest",)), Rule(keep_last=3), id="rules"),
    pytest.param(Quotas, Quota(logical_bytes=7), Quota(physical_bytes=9), id="quotas"),
]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    index = await Index.open(f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}")
    yield index.database
    await index.close()


async def read_again(kind: Kind, database: Database) -> dict[str, Any]:
    """As after a restart."""
    again = kind(database)
    await again.load()
    return again.all()


@pytest.mark.parametrize(("kind", "first", "second"), KINDS)
async def test_what_was_set_last_is_known_until_it_is_removed(
    database: Database, kind: Kind, first: object, second: object
) -> None:
    known = kind(database)
    await known.put("b", first)
    await known.put("a", first)
    await known.put("a", second)
    assert list(known.all().items()) == [("a", second), ("b", first)]
    assert await read_again(kind, database) == known.all()
    assert [await known.remove("a"), await known.remove("a")] == [True, False]
    assert await read_again(kind, database) == known.all() == {"b": first}


@pytest.mark.parametrize(("kind", "first", "second"), KINDS)
async def test_a_change_goes_on_where_who_asked_for_it_has_gone(
    database: Database, kind: Kind, first: object, second: object
) -> None:
    known = kind(database)
    async with database.write():  # it has to wait for its turn
        asking = asyncio.create_task(known.put("a", first))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await known.close()
    assert await read_again(kind, database) == known.all() == {"a": first}
