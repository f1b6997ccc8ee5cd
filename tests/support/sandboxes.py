"""Sandboxes of the real drivers for tests, from an image with one static program: tests/support/probe.c."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import itertools
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faas.metrics import Metrics
from faas.oci.source import ImageSource
from faas.spec import Network
from tests.support import patience
from tests.support.images import MemoryImages, program_layer
from worker.drivers.base import Driver, DriverPaths, Exit, PreparedImage, Sandbox, SandboxSpec
from worker.drivers.docker.driver import DockerDriver
from worker.drivers.oci.driver import OciDriver
from worker.launcher import process as launcher
from worker.launcher.client import LaunchedDriver

MB = 1024 * 1024
DEADLINE_SECONDS = 20.0 * patience.FACTOR


def probe() -> Path:
    return compiled("probe")


@functools.cache
def compiled(name: str) -> Path:
    """The static program of `name`.c beside this file; `FAAS_PROGRAMS` is a folder of those that are compiled."""
    if given := os.environ.get("FAAS_PROGRAMS"):
        return Path(given) / name
    folder = tempfile.mkdtemp(prefix="faas-probe-")
    Path(folder).chmod(0o755)  # other users of this machine may try it too
    atexit.register(shutil.rmtree, folder)
    program = Path(folder) / name
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["gcc", "-static", "-O1", "-w", "-o", program, source], check=True)
    return program


@dataclass
class Workbench:
    """A driver with the probe's image prepared."""

    driver: Driver
    server_id: str
    images: MemoryImages
    image: PreparedImage
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def spec(self, *words: str, **changes: Any) -> SandboxSpec:
        values: dict[str, Any] = {
            "id": f"t{next(self.numbers)}",
            "image": self.image,
            "args": ("/bin/probe", *words),
            "env": {"GREETING": "hello"},
            "workdir": "/",
            "memory_bytes": 64 * MB,
            "cpus": 1.0,
            "tmp_bytes": 4 * MB,
            "network": Network.NONE,
        }
        return SandboxSpec(**{**values, **changes})

    @contextlib.asynccontextmanager
    async def running(self, *words: str, **changes: Any) -> AsyncIterator[Sandbox]:
        sandbox = await self.driver.create(self.spec(*words, **changes))
        try:
            await self.driver.start(sandbox)
            yield sandbox
        finally:
            await self.driver.delete(sandbox.id)

    async def run(self, *words: str, **changes: Any) -> tuple[Exit, str]:
        """To the end: how it ended, and what it wrote to stdout."""
        async with self.running(*words, **changes) as sandbox, asyncio.timeout(DEADLINE_SECONDS):
            text, outcome = await asyncio.gather(sandbox.stdout.read(), sandbox.exited)
            return outcome, text.decode()

    async def table(self, *words: str, **changes: Any) -> dict[str, str]:
        """What it wrote, as `name value` lines."""
        _, text = await self.run(*words, **changes)
        return dict(line.split(maxsplit=1) for line in text.splitlines())


def launched(paths: DriverPaths, source: ImageSource, **options: Any) -> Driver:
    """The oci driver in a launcher of its own, as the server has it."""
    process = launcher.start(launcher.Options(str(paths.data), paths.server_id, driver=options))
    return LaunchedDriver(process, source, Metrics(""), lambda: None)


DRIVERS: dict[str, Callable[..., Driver]] = {
    "oci": OciDriver,
    "launched": launched,
    "docker": DockerDriver,
    "podman": DockerDriver,
    "oci-runsc": functools.partial(OciDriver, runtime="runsc"),
}


@contextlib.asynccontextmanager
async def workbench(data: Path, server_id: str = "", kind: str = "oci", **options: Any) -> AsyncIterator[Workbench]:
    """A driver of this kind, open, with the probe's image; `options` are its own."""
    images = MemoryImages()
    server_id = server_id or secrets.token_hex(4)
    driver = DRIVERS[kind](DriverPaths(data, server_id), images, **options)
    await driver.open()
    try:
        reference = images.add("probe", [program_layer({"bin/probe": probe()})])
        yield Workbench(driver, server_id, images, await driver.prepare(reference))
    finally:
        await driver.close()
