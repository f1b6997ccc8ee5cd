"""The launcher's own sandboxes are on the server's memory ledger, asked for over their socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from faas.errors import FaasError, Throttled, Unavailable
from tests.support.fake_driver import eventually
from worker.launcher import loans, wire
from worker.launcher.loans import Loans, asking
from worker.launcher.peer import Peer


class Books:
    """A server with so many bytes, and a launcher that asks it."""

    def __init__(self, most: int) -> None:
        self.free = self.most = most
        self.waits = asyncio.Event()
        self.waits.set()
        self.loans = Loans()
        self.loans.lend = self.lend
        ours, theirs = wire.pair()
        self.server = Peer(ours, self.loans.verbs(), lambda _: None)
        self.launcher = Peer(theirs, {}, lambda _: None)
        self.ask = asking(self.launcher)

    @contextlib.asynccontextmanager
    async def lend(self, size: int) -> AsyncIterator[None]:
        await self.waits.wait()
        if size > self.free:
            raise Throttled(f"{size} are wanted, {self.free} are free")
        self.free -= size
        try:
            yield
        finally:
            self.free += size


@pytest.fixture
async def books() -> AsyncIterator[Books]:
    made = Books(100)
    yield made
    await made.launcher.close()
    await made.server.close()
    await made.loans.close()
    assert made.free == made.most


async def test_memory_is_lent_for_as_long_as_it_is_used(books: Books) -> None:
    async with books.ask(60):
        assert books.free == 40
        async with books.ask(40):
            assert books.free == 0
        await eventually(lambda: books.free == 40)
    await eventually(lambda: books.free == 100)


async def test_a_refusal_is_told_in_the_servers_own_words(books: Books) -> None:
    with pytest.raises(FaasError, match="101 are wanted, 100 are free"):
        async with books.ask(101):
            pytest.fail("lent")
    async with books.ask(100):
        assert books.free == 0


async def test_who_waits_no_more_gets_nothing_that_would_stay_lent(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loans, "ANSWER_SECONDS", 0.05)
    books.waits.clear()
    with pytest.raises(Unavailable, match="nobody said in time"):
        async with books.ask(60):
            pytest.fail("lent")
    monkeypatch.setattr(loans, "ANSWER_SECONDS", 60.0)
    books.waits.set()
    async with books.ask(100):  # answered after the first one's memory has come and gone
        assert books.free == 0


async def test_with_the_launcher_its_loans_end(books: Books) -> None:
    await books.ask(60).__aenter__()
    await books.launcher.close()
    assert books.free == 40
    await books.loans.close()
    assert books.free == 100
