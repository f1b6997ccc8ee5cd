"""Transactions as they are, or all of them within one that is undone: what would a collection take?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from faas.state.session import Database, Transaction

AT_ONCE = 500  # rows of one transaction: nobody waits long for the writer's turn


class Transactions(Protocol):
    """A `Database`, or a simulation of one."""

    def read(self) -> AbstractAsyncContextManager[Transaction]: ...

    def write(self) -> AbstractAsyncContextManager[Transaction]: ...


class _NotReally(Exception):
    """Ends a transaction that must leave everything as it was."""


@dataclass(frozen=True, slots=True)
class _Simulation:
    tx: Transaction

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        yield self.tx

    write = read


@asynccontextmanager
async def simulation(database: Database) -> AsyncIterator[Transactions]:
    """What is written within is seen within, and undone at its end. Other writers wait for that."""
    try:
        async with database.write() as tx:
            yield _Simulation(tx)
            raise _NotReally
    except _NotReally:
        return
