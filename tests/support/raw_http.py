"""An aiohttp application on a real socket, and clients that send bytes as they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from faas.runner import Runner
from gateway.lane.lane import Lane

FIRST_SECONDS = 15.0  # an answer may take as long to begin where the machine is busy
SILENCES = 5
LANE = web.AppKey("lane", Lane)


@asynccontextmanager
async def serving(app: web.Application, **options: Any) -> AsyncIterator[int]:
    """Serve `app` on loopback, behind its LANE where it has one; yields the port. `options` are the runner's."""
    runner = Runner(app, **{"shutdown_timeout": 1, **options})
    await runner.setup()
    if (lane := app.get(LANE)) is not None:
        lane.idle_seconds = options.get("keepalive_timeout", lane.idle_seconds)
        async with _in_front(lane, runner) as port:
            yield port
        return
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _in_front(lane: Lane, runner: Runner) -> AsyncIterator[int]:
    assert runner.server is not None
    lane.open(runner.server)
    listening = await asyncio.get_running_loop().create_server(lane.accept, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        lane.refuse()
        lane.close()
        await runner.cleanup()


async def _more(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """Raises TimeoutError after so much silence. It has parts, of which a machine that stands still takes but one."""
    for _ in range(SILENCES):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds / SILENCES):
                return await reader.read(65_536)
    raise TimeoutError


async def talk(port: int, *pieces: bytes, pause: float = 0.0, seconds: float = 5.0, end: bool = False) -> bytes:
    """Send `pieces` with `pause` between them and read until the server closes, or nothing more came for `seconds`. The
    first byte is waited for longer.

    `end`: close our own direction after the last piece.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause)
            writer.write(piece)
            await writer.drain()
        if end:
            writer.write_eof()
        while True:
            if not (data := await _more(reader, seconds if answer else max(seconds, FIRST_SECONDS))):
                return answer
            answer += data
    except (TimeoutError, ConnectionResetError):
        return answer
    finally:
        writer.close()
