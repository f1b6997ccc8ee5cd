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


async def test_who_waits_for_an_answer_goes_on_before_what_came_after_it_is_heard() -> None:
    order: list[str] = []
    heard = asyncio.Event()

    def on_event(_: Message) -> None:
        order.append("event")
        heard.set()

    async def ask() -> None:
        await asker.call("give")
        order.append("answer")

    ours, theirs = wire.pair()
    asker = Peer(ours, {}, lambda _: None, on_event)
    try:
        asking = asyncio.create_task(ask())
        await asyncio.sleep(0)
        theirs.send(b'J{"n":1,"value":null}')
        theirs.send(b'J{"event":"figure"}')
        async with asyncio.timeout(5):
            await asking
            await heard.wait()
        assert order == ["answer", "event"]
    finally:
        await asker.close()
        theirs.close()


@pytest.mark.parametrize("packet", [b'J{"event":"\xff"}', b"J" + '{"event":1}'.encode("utf-16"), b"J[1]"])
async def test_what_is_no_utf_8_or_no_object_ends_the_channel(packet: bytes) -> None:
    ours, theirs = wire.pair()
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    channel = wire.Channel(ours, lambda _: None, ended.set_result)
    try:
        theirs.send(packet)
        async with asyncio.timeout(5):
            assert "packet" in (why := await ended) or "message" in why
    finally:
        channel.close()
        theirs.close()
