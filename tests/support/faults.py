"""A push that is killed at each of its steps in turn: what the disk is asked to do, and what the database commits.

    python -m tests.support.faults FOLDER [STEP...]

prints one JSON object per run: its step's name, whether the push was answered, and what was found wrong afterwards.
Each run is a process of its own (a fork: the imports are paid once) which kills itself, as a crash would.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import Connection, Engine, QueuePool, event

from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.digest import Digest
from registry import gc
from registry.app import create_app
from registry.index.index import Index
from registry.service import Registry

LAYER = os.urandom(100_000)
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


class Faults:
    """Counts the steps once `armed`, names them, and kills the process at number `at`."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.armed = False
        self.names: list[str] = []
        self._lock = threading.Lock()

    def step(self, name: str) -> None:
        if not self.armed:
            return
        with self._lock:
            self.names.append(name)
            if len(self.names) - 1 == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, of: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            said = f"{name} {of(*args)}"
            self.step(f"before {said}")
            done = real(*args, **options)
            self.step(f"after {said}")
            return done

        setattr(owner, name, wrapped)

    def install(self) -> None:
        def of_descriptor(file: int, *_: Any) -> str:
            return _kind(str(Path(f"/proc/self/fd/{file}").readlink()))

        self.around(os, "pwrite", of_descriptor)
        self.around(os, "fsync", of_descriptor)
        self.around(os, "rename", lambda source, target: f"{_kind(str(source))} to {_kind(str(target))}")
        event.listen(Engine, "commit", self._commit)
        for name in ("add_blob", "put_manifest"):
            self._after(name)

    def _commit(self, connection: Connection) -> None:
        pool = connection.engine.pool
        if isinstance(pool, QueuePool) and pool.size() == 1:  # the writer's
            self.step("before commit")

    def _after(self, name: str) -> None:
        real = getattr(Index, name)

        async def wrapped(*args: Any, **options: Any) -> Any:
            done = await real(*args, **options)
            self.step(f"after {name}")
            return done

        setattr(Index, name, wrapped)


def _kind(path: str) -> str:
    """`upload`, `blob`, or the `folder` of blobs."""
    parts = Path(path).parts
    if "uploads" in parts:
        return "upload"
    return "blob" if len(parts[-1]) > 2 else "folder"


async def opened(data: Path) -> Registry:
    url = f"sqlite+aiosqlite:///{data / 'registry.db'}"
    return await Registry.open(data, url, accounts=None, metrics=Metrics("test"))


async def push(client: TestClient[Any, Any]) -> None:
    """One blob in one request, one in chunks, a manifest."""
    async with client.post("/v2/app/blobs/uploads/", params={"digest": str(Digest.of(CONFIG))}, data=CONFIG) as reply:
        assert reply.status == 201, reply.status
    async with client.post("/v2/app/blobs/uploads/") as reply:
        location = reply.headers["Location"]
    async with client.patch(location, data=LAYER) as reply:
        assert reply.status == 202, reply.status
    async with client.put(location, params={"digest": str(Digest.of(LAYER))}) as reply:
        assert reply.status == 201, reply.status
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    async with client.put("/v2/app/manifests/v1", data=manifest(), headers=headers) as reply:
        assert reply.status == 201, reply.status


def manifest() -> bytes:
    config, layer = (
        {"mediaType": kind, "digest": str(Digest.of(data)), "size": len(data)}
        for kind, data in ((media_types.OCI_CONFIG, CONFIG), (media_types.OCI_LAYER, LAYER))
    )
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": config, "layers": [layer]}
    return json.dumps(value).encode()


async def crash(data: Path, at: int, answered: Path) -> list[str]:
    """The names of all steps, where none of them is `at`."""
    faults = Faults(at)
    faults.install()
    registry = await opened(data)
    async with TestClient(TestServer(create_app(registry))) as client:
        faults.armed = True
        await push(client)
        answered.touch()  # noqa: ASYNC240 - nobody else waits
        faults.armed = False
    await registry.close()
    return faults.names


async def found_wrong(data: Path, answered: bool) -> list[str]:
    """After a restart: no row without its file, whole; an answered push is there; another one heals all."""
    wrong = []
    registry = await opened(data)
    async with TestClient(TestServer(create_app(registry))) as client:
        wrong += await _rows_without_files(registry)
        if answered:
            wrong += await _pulled(client)
        await push(client)
        wrong += await _pulled(client)
        # Whatever a crash left behind is swept: files without a row, and sessions.
        await gc.Collection(registry.index, registry.blobs, None, registry.retention.of, stray_seconds=-1).run()
        await registry.blobs.sweep(-1)
        files = {path.name for path in (data / "blobs").glob("*/*/*")}
        if files != {Digest.of(CONFIG).hex, Digest.of(LAYER).hex}:
            wrong.append(f"files are left: {files}")
        if list((data / "uploads").iterdir()):
            wrong.append("an upload is left")
        wrong += await _pulled(client)
    await registry.close()
    return wrong


async def _rows_without_files(registry: Registry) -> list[str]:
    async with registry.index.database.read() as tx:
        rows: Sequence[Any] = (await tx.exec_driver_sql("SELECT digest, size FROM blobs")).all()
    wrong = []
    for name, size in rows:
        path = registry.blobs.path(Digest.parse(name))
        data = path.read_bytes() if path.exists() else b""
        if len(data) != size or str(Digest.of(data)) != name:
            wrong.append(f"the row of {name} has no whole file")
    return wrong


async def _pulled(client: TestClient[Any, Any]) -> list[str]:
    wrong = []
    for path, data in (
        ("manifests/v1", manifest()),
        (f"blobs/{Digest.of(CONFIG)}", CONFIG),
        (f"blobs/{Digest.of(LAYER)}", LAYER),
    ):
        async with client.get(f"/v2/app/{path}") as reply:
            body = await reply.read()
            if reply.status != 200 or hashlib.sha256(body).digest() != hashlib.sha256(data).digest():
                wrong.append(f"{path} is answered with {reply.status} and {len(body)} bytes")
    return wrong


def in_child(work: Callable[[], list[str]]) -> list[str] | None:
    """What it returns; None where it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writing, "w") as out:
                json.dump(work(), out)
            os._exit(0)
        except BaseException as error:
            print(f"the run failed: {error!r}", file=sys.stderr)
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as found:
        said = found.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    assert status == 0, "a run failed"
    return list(json.loads(said))


def main(folder: Path, only: list[int]) -> None:
    warnings.simplefilter("ignore")
    names = in_child(lambda: asyncio.run(crash(made(folder / "whole"), -1, folder / "whole-answered")))
    assert names is not None
    print(json.dumps({"steps": names}), flush=True)
    for at in only or range(len(names)):
        if at >= len(names):
            continue
        data, answered = made(folder / f"step{at}"), folder / f"answered{at}"
        killed = in_child(lambda: asyncio.run(crash(data, at, answered))) is None  # noqa: B023 - run at once
        wrong = in_child(lambda: asyncio.run(found_wrong(data, answered.exists())))  # noqa: B023
        print(json.dumps({"step": names[at], "killed": killed, "wrong": wrong}), flush=True)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]])
