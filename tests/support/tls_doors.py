"""One set of functions behind two pairs of doors as the server has them, with the lane in front and without."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from faas.auth import TokenFile
from faas.doors import Doors
from faas.listener import bound, listen
from faas.proxies import NO_PROXIES, TrustedProxies
from faas.redirect import redirect_app
from faas.remote import PROXIES
from faas.settings import Address
from faas.spec import Interface
from faas.tls import Certificates
from gateway.data_path import DataPath
from gateway.edge.passage import Passage
from gateway.lane.lane import Lane
from gateway.lane.plans import Place
from tests.support.certificates import certify
from tests.support.data_path import TOKEN, application, data_path, passage_of, put, revision
from tests.support.fake_worker import FakeWorker, OnInvoke, OnRequest, echo, ok
from tests.support.two_ways import comparable

DOMAIN = "functions.example"


def by_uvloop(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """`test` on the server's own loop: its TLS is not asyncio's."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


@functools.cache
def _client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass
class Entrance:
    """`hello` is Lambda-style, `web` an http function; ten of each may run at once."""

    worker: FakeWorker
    path: DataPath
    passage: Passage
    doors: Doors
    ports: dict[str, int]
    tls: bool

    @property
    def context(self) -> ssl.SSLContext | None:
        return _client_context() if self.tls else None

    async def opened(
        self, *pieces: bytes, name: str = "main.example", source: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from `source` to the host `name` (SNI), which does not look at certificates."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.ports["public"],
            ssl=self.context,
            server_hostname=name if self.tls else None,
            local_addr=(source, 0),
        )
        for piece in pieces:
            writer.write(piece)
        return reader, writer

    async def ask(self, request: bytes, *, name: str = "main.example", source: str = "127.0.0.1") -> bytes:
        """All that comes until the connection's end, without what differs each time."""
        reader, writer = await self.opened(request, name=name, source=source)
        try:
            async with asyncio.timeout(15):
                answer = await reader.read()
        finally:
            writer.close()
        return comparable(answer).replace(str(self.ports["public"]).encode(), b"PORT")


@asynccontextmanager
async def entrances(
    folder: Path | None = None,
    on_invoke: OnInvoke = echo,
    on_request: OnRequest = ok,
    *,
    proxies: TrustedProxies = NO_PROXIES,
    sockets: Mapping[bool, socket.socket] | None = None,
) -> AsyncIterator[tuple[Entrance, Entrance]]:
    """Aiohttp's alone, and the one with the lane. Over TLS where there is a `folder` for certificates: of main.example,
    and of all names of DOMAIN. `sockets`: public listeners that are there already, by whether they are the lane's."""
    tls = None
    if folder is not None:
        cert, key = certify(folder, "main", "main.example")
        (folder / "names").mkdir()
        certify(folder / "names", "_.functions.example", f"*.{DOMAIN}")
        tls = Certificates(str(cert), str(key), str(folder / "names")).context
    async with AsyncExitStack() as stack:
        made = []
        for by_the_lane in (False, True):
            given = sockets[by_the_lane] if sockets is not None else listen(Address("127.0.0.1", 0))
            public, redirect = stack.enter_context(given), stack.enter_context(listen(Address("127.0.0.1", 0)))
            ports = {"public": bound(public).port, "redirect": bound(redirect).port}
            path, _ = data_path(worker := FakeWorker(on_invoke, on_request))
            web = revision("web", interface=Interface.HTTP, concurrency=10, scale={"max": 1})
            for one, count in ((revision(scale={"max": 10}), 10), (web, 1)):
                put(path, one)
                await worker.scale(one, count)
            app = application(path, domain=DOMAIN)
            app[PROXIES] = proxies
            passage = passage_of(path, TokenFile(TOKEN))
            scheme = "https" if tls is not None else "http"
            lane = Lane(path, Place(passage, DOMAIN), scheme=scheme, proxies=proxies)
            apps = {"public": app, "redirect": redirect_app(ports["public"])}
            doors = Doors(apps, tls, {"public": lane} if by_the_lane else {}, proxies=proxies)
            stack.push_async_callback(doors.close)
            await doors.open({"public": public, "redirect": redirect})
            made.append(Entrance(worker, path, passage, doors, ports, tls is not None))
        await asyncio.sleep(0)
        try:
            yield made[0], made[1]
        finally:
            await asyncio.gather(*(one.doors.refuse() for one in made))  # uvloop does not end with open servers
        for entrance in made:
            assert entrance.path.invoker.running == 0, "an invocation was not counted as ended"
