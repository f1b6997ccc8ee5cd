"""Calls between the server and the launcher: descriptors have one owner, whoever goes when."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from worker.launcher import wire
from worker.launcher.peer import Answer, Peer
from worker.launcher.wire import Message, Received


async def test_descriptors_that_come_in_the_moment_in_which_their_caller_goes_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    async def give(_: Message, __: list[int]) -> Answer:
        return Answer(None, [writing])

    ours, theirs = wire.pair()
    asker, giver = Peer(ours, {}, lambda _: None), Peer(theirs, {"give": give}, lambda _: None)
    try:
        call = asyncio.create_task(asker.call("give"))
        answered = asker._answered

        def answered_and_gone(number: int, received: Received) -> None:
            answered(number, received)
            call.cancel()

        monkeypatch.setattr(asker, "_answered", answered_and_gone)
        with contextlib.suppress(asyncio.CancelledError):
            await call
        assert call.cancelled()
        assert os.read(reading, 1) == b""  # nobody has the other end any more; else BlockingIOError
    finally:
        os.close(reading)
        await asker.close()
        await giver.close()
