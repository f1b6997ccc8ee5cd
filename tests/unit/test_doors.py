"""The listeners' doors: how many come in at once, and how they close."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from faas.doors import Doors
from faas.listener import bound, listen
from faas.settings import Address


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def status(port: int, path: str = "/") -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    async with asyncio.timeout(5):
        return (await reader.readline())[9:12], writer


async def test_a_connection_too_many_hears_503_and_the_next_one_is_served_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faas.doors.CONNECTIONS_SHARE", 0.0)
    monkeypatch.setattr("faas.doors.LEAST_CONNECTIONS", 2)
    app = web.Application()
    app.router.add_get("/", hello)
    doors = Doors({"public": app}, None)
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"public": listener})
        try:
            first, one = await status(port)
            second, two = await status(port)
            third, three = await status(port)
            assert (first, second, third) == (b"200", b"200", b"503")
            one.close()
            await asyncio.sleep(0.1)
            fourth, four = await status(port)
            assert fourth == b"200"
            await doors.refuse()
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            for writer in (two, three, four):
                writer.close()
        finally:
            await doors.close()


async def test_an_end_waits_for_requests_and_for_no_connection_that_only_waits() -> None:
    may_answer, asked = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await may_answer.wait()
        return web.Response(text="slow")

    app = web.Application()
    app.router.add_get("/", hello)
    app.router.add_get("/slow", slow)
    doors = Doors({"registry": app}, None)
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"registry": listener})
        try:
            _, idle = await status(port)
            asking = asyncio.create_task(status(port, "/slow"))
            await asked.wait()
            await doors.refuse()
            ending = asyncio.create_task(doors.finish("registry", 10))
            await asyncio.wait((ending,), timeout=0.2)
            assert not ending.done()
            may_answer.set()
            async with asyncio.timeout(5):
                answered, writer = await asking
                await ending
            assert answered == b"200"
            writer.close()
            idle.close()
        finally:
            await doors.close()


async def test_before_a_successor_takes_over_the_next_answer_on_a_kept_connection_is_its_last() -> None:
    app = web.Application()
    app.router.add_get("/", hello)
    doors = Doors({"public": app}, None)
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"public": listener})
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
            writer.write(request)
            assert b"connection: close" not in (await reader.readuntil(b"hello")).lower()
            refusing = asyncio.create_task(doors.refuse(hand_over=True))
            await asyncio.sleep(0)  # it has told all connections, and waits
            assert not refusing.done()
            writer.write(request)
            async with asyncio.timeout(5):
                answer = await reader.read()  # to the connection's end
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
            writer.close()
            await refusing
        finally:
            await doors.close()


async def test_who_had_connected_when_the_end_came_is_answered_and_never_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faas.doors.SETTLE_SECONDS", 2.0)
    app = web.Application()
    app.router.add_get("/", hello)
    doors = Doors({"public": app}, None)
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"public": listener})
        try:
            accepted = await asyncio.open_connection("127.0.0.1", port)
            (await status(port))[1].close()  # the loop has accepted both
            before = socket.create_connection(("127.0.0.1", port))  # in the kernel's queue: the loop has not been round
            refusing = asyncio.create_task(doors.refuse())
            await asyncio.sleep(0.02)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1)
            before.setblocking(False)
            queued = await asyncio.open_connection(sock=before)
            for reader, writer in (accepted, queued):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                async with asyncio.timeout(5):
                    assert (await reader.readline())[9:12] == b"200"
                writer.close()
            await refusing
        finally:
            await doors.close()
