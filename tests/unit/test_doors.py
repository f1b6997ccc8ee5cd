"""The listeners' doors: how many come in at once, and how they close."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from faas.doors import Doors
from faas.listener import bound, listen
from faas.settings import Address

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def status(port: int) -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
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
