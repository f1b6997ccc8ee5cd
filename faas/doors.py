"""`Doors`: listening sockets with applications behind them, opened, bounded, and closed in good order."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import cast

from aiohttp import web

from faas.errors import InvalidInput
from faas.listener import BACKLOG
from faas.web import RUNNER_OPTIONS

CONNECTIONS_SHARE = 0.2  # of our descriptors, for each listener: instances and files need the rest
LEAST_CONNECTIONS = 64
CUT_SECONDS = 0.5  # after that: for handlers to notice that they are cancelled


def raise_file_limit() -> None:
    """An instance costs about eight descriptors; the soft limit's usual 1,024 would be reached at once."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def certificate(cert: str, key: str) -> ssl.SSLContext | None:
    """What a TLS listener shows; None where no files (PEM) are named. Raises InvalidInput where they cannot be used."""
    if not cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(f"the certificate cannot be used: {error}", hint="--tls-cert and --tls-key") from None
    return context


class Doors:
    """The HTTP side of all listeners. `private` is the registry's second one, plain, for this process itself.

    Each listener serves a share of the process's descriptors; who comes beyond that hears 503 at once.
    """

    def __init__(self, apps: Mapping[str, web.Application], tls: ssl.SSLContext | None) -> None:
        self._runners = {
            name: web.AppRunner(app, shutdown_timeout=CUT_SECONDS, **RUNNER_OPTIONS) for name, app in apps.items()
        }
        self._tls = tls
        self._listening: list[asyncio.Server] = []
        self._most = max(LEAST_CONNECTIONS, int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * CONNECTIONS_SHARE))

    async def open(self, sockets: Mapping[str, socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for runner in self._runners.values():
            await runner.setup()
        for name, listener in sockets.items():
            server = self._runners["registry" if name == "private" else name].server
            assert server is not None
            accept = partial(self._accept, server)
            tls = None if name == "private" else self._tls
            self._listening.append(await loop.create_server(accept, sock=listener, ssl=tls, backlog=BACKLOG))

    def _accept(self, server: web.Server) -> asyncio.Protocol:
        return server() if len(server.connections) < self._most else Full()

    async def refuse(self) -> None:
        """No new connection from here on. Those that are open get the answer that is on its way, and end."""
        for listening in self._listening:
            listening.close()
        await asyncio.sleep(0)  # requests that have just come in begin
        for runner in self._runners.values():
            if runner.server is not None:
                runner.server.pre_shutdown()

    async def finish(self, name: str, seconds: float) -> None:
        """Wait for the requests to this listener that are on their way, so many seconds at most; connections that only
        wait for their next one are closed at once."""
        server = self._runners[name].server
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if server is not None:
                    await server.shutdown(None)

    async def close(self) -> None:
        """Cut what is still connected."""
        await asyncio.gather(*(runner.cleanup() for runner in self._runners.values()))


class Full(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.WriteTransport", transport)
        head = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
        transport.write(head + b"Connection: close\r\nContent-Length: 0\r\n\r\n")
        transport.close()
