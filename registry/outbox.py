"""`Outbox`: the tags that moved, for one reader outside. From its making on the index writes them down.

A registry without one, as it runs alone, writes nothing: nobody would ever take it away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from faas.oci.changes import TagChange
from registry.index import outbox
from registry.index.index import Index


class Outbox:
    """Implements `faas.oci.changes.TagChanges`."""

    def __init__(self, index: Index) -> None:
        self._database = index.database
        self._written = asyncio.Event()
        index.tag_moved = self._written.set

    async def wait(self) -> None:
        await self._written.wait()
        self._written.clear()

    async def read(self, after: int, limit: int) -> list[TagChange]:
        async with self._database.read() as tx:
            return await outbox.read(tx, after, limit)

    async def done(self, ids: Collection[int]) -> None:
        if ids:
            async with self._database.write() as tx:
                await outbox.remove(tx, ids)
