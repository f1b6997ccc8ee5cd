"""`GroupCommit`: many small writes share one transaction, and so one fsync."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from faas.errors import Unavailable
from faas.state.session import Database, Transaction

Work = Callable[[Transaction], Awaitable[None]]
MOST = 256  # writes in one transaction


@dataclass(frozen=True, slots=True)
class _Write:
    work: Work
    then: Callable[[], None]
    done: asyncio.Future[None]


class GroupCommit:
    """While one transaction is being committed, the next ones gather; `start`ed once, `stop`ped once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Write] = []
        self._more = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name="group commit")

    async def stop(self) -> None:
        """Write what waits, and end."""
        self._closing = True
        self._more.set()
        if self._loop is not None:
            await self._loop
            self._loop = None

    async def write(self, work: Work, then: Callable[[], None] = lambda: None) -> None:
        """Returns once `work` is committed; raises what it raised, or what the commit did.

        Where the caller is cancelled the work is committed all the same. `then` follows the commit in any case.
        """
        if self._loop is None or self._closing:
            raise Unavailable("the server is shutting down")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(work, then, done))
        self._more.set()
        await done

    async def _run(self) -> None:
        while self._waiting or not self._closing:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._commit(batch)

    async def _commit(self, batch: list[_Write]) -> None:
        try:
            async with self._database.write() as tx:
                for one in batch:
                    await one.work(tx)
        except Exception as error:
            if len(batch) > 1:  # one may have spoilt it for all: each alone
                for one in batch:
                    await self._commit([one])
                return
            if not batch[0].done.done():
                batch[0].done.set_exception(error)
            return
        for one in batch:
            one.then()
            if not one.done.done():
                one.done.set_result(None)
