"""Memory for what the launcher runs of its own: the server has the books, so the launcher asks, and gives it back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping

from faas.errors import Unavailable
from worker.drivers.base import LEND_SECONDS, Lend, freely
from worker.launcher.peer import Answer, Handler, Peer
from worker.launcher.wire import Message, close_all

ANSWER_SECONDS = LEND_SECONDS + 10.0


def asking(peer: Peer) -> Lend:
    """The launcher's side."""
    numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def lend(size: int) -> AsyncIterator[None]:
        number = next(numbers)
        try:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await peer.ask("lend", loan=number, bytes=size)
            except TimeoutError:
                raise Unavailable("nobody said in time whether there is memory") from None
            yield
        finally:
            peer.post("give_back", loan=number)

    return lend


class Loans:
    """The server's side: what the launcher has of its memory."""

    def __init__(self) -> None:
        self.lend: Lend = freely
        self._open: dict[int, contextlib.AsyncExitStack | None] = {}  # None: it waits for its memory

    def verbs(self) -> Mapping[str, Handler]:
        return {"lend": self._give, "give_back": self._take_back}

    async def close(self) -> None:
        """The launcher has ended."""
        loans, self._open = self._open, {}
        for held in filter(None, loans.values()):
            await held.aclose()

    async def _give(self, message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        number = message["loan"]
        self._open[number] = None
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.lend(message["bytes"]))
            if number in self._open:  # else nobody waits for it any more
                self._open[number] = stack.pop_all()
        return Answer()

    async def _take_back(self, message: Message, descriptors: list[int]) -> Answer:
        close_all(descriptors)
        if (held := self._open.pop(message["loan"], None)) is not None:
            await held.aclose()
        return Answer()
