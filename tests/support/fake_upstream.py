"""A registry to be copied from, in this process: counts who asks for what, and may misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.support.control import serving

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class FakeUpstream:
    """`special` answers in place of what is stored, by path below /v2/; `seen` is (method, path, Authorization)."""

    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    special: dict[str, Handler] = field(default_factory=dict)
    everywhere: Handler | None = None
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def image(self, name: str, tag: str, layer: bytes, size: int | None = None) -> tuple[str, str]:
        """(digest of the manifest, digest of its layer); `size`: what the manifest says of the layer."""
        config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        parts = [
            {"mediaType": kind, "digest": self.blob(data), "size": len(data)}
            for kind, data in ((media_types.OCI_CONFIG, config), (media_types.OCI_LAYER, layer))
        ]
        if size is not None:
            parts[1]["size"] = size
        body = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": parts[0], "layers": parts[1:]}
        raw = json.dumps(body).encode()
        digest = str(Digest.of(raw))
        self.manifests[f"{name}/manifests/{tag}"] = self.manifests[f"{name}/manifests/{digest}"] = raw
        return digest, str(parts[1]["digest"])

    def blob(self, data: bytes) -> str:
        digest = str(Digest.of(data))
        self.blobs[digest] = data
        return digest

    def count(self, method: str, ending: str) -> int:
        return sum(m == method and path.endswith(ending) for m, path, _ in self.seen)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v2/")
        self.seen.append((request.method, path, request.headers.get("Authorization", "")))
        if (handler := self.special.get(path) or self.everywhere) is not None:
            return await handler(request)
        if (raw := self.manifests.get(path)) is not None:
            headers = {"Docker-Content-Digest": str(Digest.of(raw)), "Content-Type": media_types.OCI_MANIFEST}
            return web.Response(body=raw, headers=headers)
        if (data := self.blobs.get(path.rpartition("/")[2])) is not None:
            return web.Response(body=data)
        return web.json_response({"errors": [{"code": "NAME_UNKNOWN"}]}, status=404)


@asynccontextmanager
async def fake_upstream() -> AsyncIterator[FakeUpstream]:
    fake = FakeUpstream()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    async with serving(app) as fake.url:
        yield fake


@dataclass
class Canary:
    """A listener on loopback that nobody must ever reach."""

    port: int = 0
    connections: int = 0


@asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    bird = Canary()

    async def sing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bird.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
        writer.close()

    server = await asyncio.start_server(sing, "127.0.0.1", 0)
    async with server:
        bird.port = server.sockets[0].getsockname()[1]
        yield bird
