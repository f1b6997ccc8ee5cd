"""Large answers, which are held in memory until their reader has taken them: so many bytes of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from faas.bodies import Bodies
from faas.errors import Unavailable
from faas.web import BODY_SECONDS
from registry.errors import RegistryError

SMALL_BYTES = 65_536  # what a socket takes at once
LARGE_BYTES = 64 << 20  # on their way, in all: 16 of the largest manifests
PIECE = 262_144


async def send(request: web.Request, answers: Bodies, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """`body` with a 200. Raises TOOMANYREQUESTS where others read slowly, ConnectionError where this one does."""
    if len(body) <= SMALL_BYTES or request.method == "HEAD":
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    with answers.share() as share:
        try:
            share.take(len(body))
        except Unavailable:
            words = "too many large answers are on their way; try again shortly"
            raise RegistryError("TOOMANYREQUESTS", words, headers={"Retry-After": "1"}) from None
        try:
            async with asyncio.timeout(BODY_SECONDS):
                await response.prepare(request)
                for begin in range(0, len(body), PIECE):
                    await response.write(body[begin : begin + PIECE])
                await response.write_eof()
        except TimeoutError:
            raise ConnectionResetError("the client reads too slowly") from None
    return response
