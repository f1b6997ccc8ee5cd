"""Reading what an upstream sends: never more than was agreed on, never at a trickle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import ClientResponse

from registry.upstream.errors import TooSlow, Untrusted

CHUNK = 1 << 18
PACE_SECONDS = 60.0
PACE_BYTES = 60_000  # in so many seconds: one byte a minute would hold a download for ever


async def read(answer: ClientResponse, limit: int, name: str) -> bytes:
    """The whole body. Raises Untrusted past `limit` bytes."""
    raw = bytearray()
    async for chunk in answer.content.iter_chunked(CHUNK):
        raw += chunk
        if len(raw) > limit:
            raise Untrusted(f"{name} sends more than {limit} bytes")
    return bytes(raw)


async def paced(answer: ClientResponse, name: str) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TooSlow; where nothing comes at all, the session's own time-out ends it."""
    clock = asyncio.get_running_loop().time
    began, got = clock(), 0
    async for chunk in answer.content.iter_any():
        got += len(chunk)
        if got >= PACE_BYTES:
            began, got = clock(), 0
        elif clock() - began > PACE_SECONDS:
            raise TooSlow(f"{name} sends less than {PACE_BYTES} bytes in {PACE_SECONDS:g} s")
        yield chunk
