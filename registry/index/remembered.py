"""`Remembered`: a small table, answered from memory: what an administrator has set, by pattern or by namespace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row, Table, delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.background import Background
from faas.state.session import Database

V = TypeVar("V")

CLOSE_SECONDS = 5.0  # for changes on their way


class Remembered(Generic[V]):
    """`load` before use, `close` after. `table` has one key, a text; `read` makes a value of a row, `written` the other
    columns of a value.

    Changes go on to their end where their caller has gone, so that memory and database know the same.
    """

    def __init__(
        self,
        database: Database,
        table: Table,
        read: Callable[[Row[Any]], V],
        written: Callable[[V], dict[str, Any]],
    ) -> None:
        self._database = database
        self._table = table
        (self._key,) = table.primary_key.columns
        self._read = read
        self._written = written
        self._changes = Background()
        self._known: dict[str, V] = {}

    async def load(self) -> None:
        rows = await self._database.ask(lambda tx: tx.execute(select(self._table)).all())
        self._known = {row._mapping[self._key]: self._read(row) for row in rows}

    async def close(self) -> None:
        await self._changes.finish(CLOSE_SECONDS)

    def all(self) -> dict[str, V]:
        """By key, sorted."""
        return dict(sorted(self._known.items()))

    async def put(self, key: str, value: V) -> None:
        await self._changes.complete(self._put(key, value), f"changing {self._table.name}")

    async def remove(self, key: str) -> bool:
        """Whether it was there."""
        return await self._changes.complete(self._remove(key), f"changing {self._table.name}")

    async def _put(self, key: str, value: V) -> None:
        def work(tx: Connection) -> None:
            columns = self._written(value)
            row = insert(self._table).values({self._key.name: key, **columns})
            tx.execute(row.on_conflict_do_update(index_elements=[self._key], set_=columns))

        await self._database.change(work)
        self._known[key] = value

    async def _remove(self, key: str) -> bool:
        await self._database.change(lambda tx: tx.execute(delete(self._table).where(self._key == key)))
        return self._known.pop(key, None) is not None
