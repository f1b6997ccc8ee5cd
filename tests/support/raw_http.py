"""An aiohttp application on a real socket, and clients that send bytes as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def serving(app: web.Application, **options: Any) -> AsyncIterator[int]:
    """Serve `app` on loopback; yields the port. `options` are `web.AppRunner`'s."""
    runner = web.AppRunner(app, **{"shutdown_timeout": 1, **options})
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def talk(port: int, *pieces: bytes, pause: float = 0.0, seconds: float = 5.0, end: bool = False) -> bytes:
    """Send `pieces` with `pause` between them and read until the server closes, or nothing came for `seconds`.

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
            async with asyncio.timeout(seconds):
                data = await reader.read(65_536)
            if not data:
                return answer
            answer += data
    except (TimeoutError, ConnectionResetError):
        return answer
    finally:
        writer.close()
