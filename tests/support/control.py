"""A whole gateway on real sockets, around a `FakeWorker`: both listeners, a real database, no containers."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import ClientSession, web
from yarl import URL

from faas.errors import InvalidInput, NotFound
from faas.metrics import Metrics
from faas.oci.changes import TagChange, TagChanges
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest
from faas.protocol import RuntimeBase
from faas.runner import Runner
from faas.state.session import Database
from faas.web import RUNNER_OPTIONS
from gateway.app import api_app, public_app
from gateway.dev_images import DevImages
from gateway.events.roots import TriggerRoots
from gateway.gateway import Gateway, ServerInfo
from gateway.retries import RetryRules
from tests.support.fake_worker import FakeWorker

DIGEST = "sha256:" + "a" * 64
FAST = RetryRules(after=(0.02, 0.04), first=0.02, longest=0.1)


class FakeImages:
    """Every `repository@digest` is there but what `gone` names; a tag leads to DIGEST."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.manifests: dict[str, Manifest] = {}
        self.blobs: dict[Digest, bytes] = {}

    def hold(self, manifest: Manifest, blobs: Mapping[Digest, bytes]) -> None:
        """An image of which there is more than its name."""
        self.manifests[str(manifest.digest)] = manifest
        self.blobs.update(blobs)

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        repository, _, digest = reference.partition("@")
        if repository.partition(":")[0] in self.gone:
            raise NotFound
        if (held := self.manifests.get(digest)) is not None:
            return held
        return Manifest(b"{}", Digest.parse(digest or DIGEST), "application/vnd.oci.image.manifest.v1+json")

    def is_copy(self, repository: str) -> bool:
        return False

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        if descriptor.digest not in self.blobs:
            raise NotFound
        return io.BytesIO(self.blobs[descriptor.digest])


class NoChanges:
    """A registry in which no tag ever moves."""

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def read(self, after: int, limit: int) -> list[TagChange]:
        return []

    async def done(self, ids: Collection[int]) -> None: ...


class FakeRuntimes:
    BASE = RuntimeBase("python3.11", f"runtime/python:3.11@{DIGEST}", "3.11.7", "amd64", ("manylinux_2_17_x86_64",))

    async def ensure(self, name: str) -> RuntimeBase:
        if not self.BASE.name.startswith(name):
            raise InvalidInput(f"this server has no {name}")
        return self.BASE

    async def builder(self, name: str) -> str:
        return f"runtime/build-python@{DIGEST}"

    async def list(self) -> list[RuntimeBase]:
        return [self.BASE]

    async def current(self, base: str) -> str:
        return self.BASE.reference

    async def rebase(self, image: str, base: str) -> str:
        return image


@dataclass
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Control:
    """A running gateway. `call` goes to the API as `token` (else the administrator), or to `public`."""

    gateway: Gateway
    worker: FakeWorker
    images: FakeImages
    api: str
    public_url: str
    token: str
    session: ClientSession
    made: dict[str, str] = field(default_factory=dict)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        public: bool = False,
    ) -> Answered:
        sent = dict(headers or {})
        secret = self.token if token is None else token
        if secret and not (public and token is None):
            sent["Authorization"] = f"Bearer {secret}"
        options: dict[str, Any] = (
            {"data": io.BytesIO(body)} if isinstance(body, bytes) else {"json": body} if body else {}
        )
        url = URL((self.public_url if public else self.api) + path, encoded=True)
        async with self.session.request(method, url, headers=sent, **options) as response:
            return Answered(response.status, response.headers, await response.read())

    async def deploy(self, name: str = "hello", /, *, namespace: Any = "", **spec: Any) -> Any:
        """Deploy with `faas.toml`'s keys as keywords; the answer. `namespace` is a str: to the type checker it may be
        what stands in `**{"async": …}`."""
        path = f"/v1/functions/{name}" + (f".{namespace}" if namespace else "")
        repository = f"{namespace}/{name}" if namespace else name
        body = {"spec": {"name": name, "public": True, **spec}, "image": f"{repository}@{DIGEST}"}
        answered = await self.call("PUT", path, body)
        assert answered.status in (200, 201), answered.body
        return answered.json()

    async def a_token(self, role: str, namespace: str = "*", functions: tuple[str, ...] = ()) -> str:
        """A token of that role; made at its first use."""
        name = f"{role}-{len(self.made)}"
        answered = await self.call(
            "POST", "/v1/tokens", {"name": name, "role": role, "namespace": namespace, "functions": list(functions)}
        )
        assert answered.status == 201, answered.body
        self.made[name] = answered.json()["token"]
        return self.made[name]


async def until(look: Callable[[], Awaitable[Any] | Any], seconds: float = 10) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < deadline, "nothing was found in time"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    runner = Runner(app, **RUNNER_OPTIONS, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def control(
    data: Path,
    worker: FakeWorker | None = None,
    *,
    rules: RetryRules = FAST,
    changes: TagChanges | None = None,
    allow_private_callbacks: bool = False,
    private_key_sets: bool = False,
    private_notifications: bool = False,
    open_metrics: bool = False,
) -> AsyncIterator[Control]:
    """A gateway on the folder `data`; used twice on one folder it is the same one, restarted."""
    worker, images = worker or FakeWorker(), FakeImages()
    database = await Database.open(f"sqlite+aiosqlite:///{data / 'faas.db'}")
    info = ServerInfo("0.0-test", "http://127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:5000", "fake")
    gateway = Gateway.create(
        database,
        worker,
        images,
        FakeRuntimes(),
        Metrics("test"),
        info,
        TriggerRoots((Path(tempfile.gettempdir()),), data),
        changes or NoChanges(),
        dev_images=DevImages(images, data / "dev"),
        rules=rules,
        allow_private_callbacks=allow_private_callbacks,
        key_sets=data / "jwks",
        private_key_sets=private_key_sets,
        private_notifications=private_notifications,
    )
    try:
        await gateway.start(data / "admin-token")
        async with (
            serving(api_app(gateway, gateway.tokens, open_metrics=open_metrics)) as api,
            serving(public_app(gateway, gateway.tokens)) as public,
            ClientSession(auto_decompress=False) as session,
        ):
            token = (data / "admin-token").read_text().strip()
            yield Control(gateway, worker, images, api, public, token, session)
    finally:
        await gateway.stop(1.0)
        await database.close()
