"""A blob over HTTP while it comes in from its upstream: end-2 for what is not here yet."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from faas.errors import FaasError
from registry.errors import RegistryError
from registry.upstream.download import Download
from registry.upstream.errors import UpstreamError, answer_for


async def send(request: web.Request, response: web.StreamResponse, download: Download, start: int, count: int) -> None:
    """`count` bytes from `start` as the body of `response`. Before the first byte has gone out a failure still has a
    status; after it, only the end of the connection can say that this is not the blob.

    Raises RegistryError, OSError, FaasError.
    """
    response.content_length = count
    try:
        async with aclosing(download.follow(start, start + count)) as pieces:
            async for piece in pieces:
                if not response.prepared:
                    await response.prepare(request)
                await response.write(piece)
        if not response.prepared:  # an empty blob
            await response.prepare(request)
        await response.write_eof()
    except (UpstreamError, RegistryError, FaasError, OSError) as error:
        if response.prepared:
            if request.transport is not None:
                request.transport.abort()
        elif isinstance(error, UpstreamError):
            raise answer_for(error, "BLOB_UNKNOWN") from None
        else:
            raise
