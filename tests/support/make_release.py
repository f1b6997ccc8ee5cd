"""Makes a fixture of `tests/releases`: the data folder that a release leaves, written by that release's own code.

    cd CHECKOUT-OF-THE-RELEASE && PYTHONPATH=. python …/make_release.py OUT.tar.gz

Both databases as SQL, blobs as files. What is in it: `tests/unit/test_releases.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sqlite3
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.support.control import control
from tests.support.registry import registry_process

FAR = 4_000_000_000.0  # an event that is due then stays to be seen
SCHEDULE = {"name": "nightly", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "input": {"kind": "night"}}
DEAD = """INSERT INTO dead_letters (namespace, id, function, qualifier, trigger, kind, meta, error_type, error_message,
    attempts, created_at, died_at, payload)
    SELECT namespace, 'dead-1', function, qualifier, trigger, kind, meta, 'ValueError', 'no', 3, created_at, created_at,
    payload FROM invocations LIMIT 1"""


async def fill(data: Path, image: str) -> None:
    async with control(data) as server:
        for memory in (128, 256):  # two revisions
            spec = {"name": "hello", "public": True, "memory": memory, "schedule": [SCHEDULE], "env": {"LEVEL": "info"}}
            answered = await server.call("PUT", "/v1/functions/hello", {"spec": spec, "image": image})
            assert answered.status in (200, 201), answered.body
        await server.call("PUT", "/v1/functions/hello/aliases/first", {"revision": 1})
        token = await server.a_token("viewer")
        (data / "viewer-token").write_text(token)
        await server.call("POST", "/async-function/hello", b"an event", public=True)
        await asyncio.sleep(0.3)
    with contextlib.closing(sqlite3.connect(data / "faas.db")) as database, database:
        pending = (FAR, b"an event")
        database.execute("UPDATE invocations SET status='pending', not_before=?, ended_at=NULL, payload=?", pending)
        database.execute(DEAD)


def dump(database: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump()).encode()


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with registry_process(data) as registry:
            digest, _ = registry.push_image("hello", "v1", b"a layer of hello")
            registry.push_image("team/other", "stable", b"another layer")
        asyncio.run(fill(data, f"hello@{digest}"))
        with tarfile.open(out, "w:gz") as archive:
            for name in ("faas.db", "registry.db"):
                add(archive, name.replace(".db", ".sql"), dump(data / name))
            for name in ("admin-token", "viewer-token"):
                add(archive, name, (data / name).read_bytes())
            for blob in sorted(path for path in (data / "blobs").rglob("*") if path.is_file()):
                add(archive, str(blob.relative_to(data)), blob.read_bytes())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    head = tarfile.TarInfo(name)
    head.size = len(content)
    archive.addfile(head, io.BytesIO(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
