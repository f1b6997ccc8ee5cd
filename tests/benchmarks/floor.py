"""The floor under a Lambda function's answer: the same runtime client and handler in the same sandbox, driven by hand.

No gateway, no pool, no event loop on the way: one blocking socket that speaks the Runtime API with the client inside.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faas.build.layer import pack
from faas.build.recipe import recipe
from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from tests.support.images import MemoryImages, tar_of
from worker.drivers.base import DriverPaths
from worker.drivers.oci.driver import OciDriver
from worker.sandbox_spec import RUNTIME_API_PORT, sandbox_spec

DEADLINE_SECONDS = 30.0
ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


class Floor:
    """A sandbox whose runtime client has connected and asked for its first event."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""  # the client's poll comes together with its answer
        self._read()
        self._number = 0

    def invoke(self, event: bytes) -> float:
        """Seconds from the event's sending to the whole answer; the next poll is waited for outside of that."""
        self._number += 1
        deadline = int(time.time() * 1000) + 30_000
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            "Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:local:000000000000:function:echo\r\n"
            f"Lambda-Runtime-Aws-Request-Id: 00000000-0000-4000-8000-{self._number:012d}\r\n"
            f"Lambda-Runtime-Deadline-Ms: {deadline}\r\nContent-Length: {len(event)}\r\n\r\n"
        ).encode()
        began = time.perf_counter()
        self._connection.sendall(head + event)
        self._read()
        taken = time.perf_counter() - began
        self._connection.sendall(ACCEPTED)
        self._read()
        return taken

    def _read(self) -> bytes:
        """One request's body."""
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        body = data[end + 4 :]
        length = int(data[:end].lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += self._more()
        self._rest = body[length:]
        return body[:length]

    def _more(self) -> bytes:
        data = self._connection.recv(65_536)
        if not data:
            raise ConnectionResetError("the runtime client has gone")
        return data


def _image(images: MemoryImages, code: bytes, work: Path) -> str:
    """The Python base and one file, `/var/task/app.py`. Returns its reference."""
    made = recipe("python")
    layers = [pack(made.system(work), work / "system.tar", "system"), pack(made.client(work), work / "c.tar", "client")]
    tars = [layer.path.read_bytes() for layer in layers] + [tar_of({"var": None, "var/task/app.py": code})]
    return images.add("echo", tars, entrypoint=made.entrypoint, workdir="/var/task", env=("_HANDLER=app.handler",))


@contextmanager
def floor(work: Path, code: bytes, spec: Mapping[str, Any]) -> Iterator[Floor]:
    """The sandbox, as `spec` (keys of faas.toml) makes it; gone at the end of the block."""
    images = MemoryImages()
    revision = Revision(
        RevisionKey("default", "echo", 1),
        parse({"name": "echo", **spec}),
        _image(images, code, work),
        Interface.LAMBDA,
    )
    with asyncio.Runner() as runner:
        driver = OciDriver(DriverPaths(work / "floor", secrets.token_hex(4)), images)
        runner.run(driver.open())
        try:
            yield Floor(runner.run(_connected(driver, revision)))
        finally:
            runner.run(driver.close())


async def _connected(driver: OciDriver, revision: Revision) -> socket.socket:
    image = await driver.prepare(revision.image)
    sandbox = await driver.create(sandbox_spec(revision, image, "floor", now=time.time()))
    listener = await sandbox.listen(RUNTIME_API_PORT)
    await driver.start(sandbox)
    async with asyncio.timeout(DEADLINE_SECONDS):
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(DEADLINE_SECONDS)
    return connection
