"""Python functions on a runtime base, for tests of stems: the base, images on it, and a pool that runs them."""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faas.build.layer import pack
from faas.build.recipe import recipe
from faas.leases import Invocation, Trigger
from faas.metrics import Metrics
from faas.oci import labels
from faas.protocol import (
    LogQuery,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support import patience
from tests.support.fake_driver import eventually
from tests.support.images import MemoryImages, tar_of
from worker.drivers.base import DriverPaths
from worker.drivers.oci.driver import OciDriver
from worker.lease import PoolLease
from worker.pool import Pool

KEPT = "FAAS_TEST_BASES"
READY_SECONDS = 60
TIMEOUT_SECONDS = int(20 * patience.FACTOR)  # of a function


@functools.cache
def base_layers(runtime: str) -> tuple[bytes, ...]:
    """Of a runtime's base: made once for all tests, which takes a second. Where that would take many minutes, in an
    emulated machine, they are there already: `FAAS_TEST_BASES` names their folder."""
    if (kept := Path(os.environ.get(KEPT, "/nowhere"), runtime)).exists():
        return tuple(path.read_bytes() for path in sorted(kept.iterdir()))
    made = recipe(runtime)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        packed = (
            pack(made.system(work), work / "system.tar", "system"),
            pack(made.client(work), work / "c.tar", "client"),
        )
        return tuple(layer.path.read_bytes() for layer in packed)


@dataclass
class Bases:
    """The base of a runtime in memory, unpacked once, and function images on it."""

    data: Path
    layers: list[bytes]
    reference: str
    entrypoint: tuple[str, ...]
    images: MemoryImages
    runtime: str = "python"
    server_id: str = field(default_factory=lambda: secrets.token_hex(4))

    @classmethod
    def build(cls, runtime: str, data: Path) -> Bases:
        images, made = MemoryImages(), recipe(runtime)
        layers = list(base_layers(runtime))
        config: dict[str, Any] = {
            "entrypoint": made.entrypoint,
            "workdir": "/var/task",
            "env": ("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"),
            "labels": {labels.BASE_STEM: labels.STEM_PROTOCOL},
        }
        repository = made.repository
        digest = images.add(repository, layers, **config).partition("@")[2]
        return cls(data, layers, f"{repository}:{made.tag}@{digest}", made.entrypoint, images, runtime)

    def function(self, *own: dict[str, bytes | str | None], handler: str = "app.handler", **config: Any) -> str:
        """An image with these layers on the base."""
        values = {
            "entrypoint": self.entrypoint,
            "workdir": "/var/task",
            "env": ("PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", f"_HANDLER={handler}"),
            "labels": {labels.BASE: self.reference},
        }
        return self.images.add("hello", [*self.layers, *(tar_of(files) for files in own)], **{**values, **config})


@dataclass
class Answer:
    value: Any
    path: str  # of the instance's start; "" where it was warm
    messages: list[str]


class World:
    """A pool with `stems` of them per runtime, and `precreated` sandboxes per revision."""

    def __init__(self, bases: Bases, logs: Path, stems: int = 2, precreated: int = 0) -> None:
        self.bases = bases
        self.metrics = Metrics("test")
        paths = DriverPaths(bases.data, bases.server_id)
        self.driver = OciDriver(paths, bases.images, stems=stems, metrics=self.metrics)
        self.pool = Pool(self.driver, logs, self.metrics, precreated=precreated)
        self.count = 0

    def revision(self, image: str, **keys: Any) -> Revision:
        self.count += 1
        name = f"f{self.count}"
        spec = parse(
            {"name": name, "runtime": self.bases.runtime, "handler": "app.handler", "timeout": TIMEOUT_SECONDS, **keys}
        )
        return Revision(RevisionKey("default", name, 1), spec, image, Interface.LAMBDA)

    async def invoke(self, revision: Revision, **event: Any) -> Answer:
        await self.pool.scale(revision, 1)
        request_id = secrets.token_hex(4)
        lease = self.pool.acquire(revision, Invocation(request_id, Trigger.HTTP, TIMEOUT_SECONDS + 10))
        assert isinstance(lease, PoolLease)
        async with lease:
            result = await lease.invoke(json.dumps(event).encode())
        path = lease.cold_start.path if lease.cold_start else ""
        query = LogQuery("default", revision.key.function)
        return Answer(json.loads(result.payload), path, [record.message async for record in self.pool.logs(query)])

    async def once(self, image: str, event: dict[str, Any] | None = None, **keys: Any) -> Answer:
        """The first answer of a new function, which is gone afterwards."""
        revision = self.revision(image, **keys)
        try:
            return await self.invoke(revision, **(event or {}))
        finally:
            await self.pool.retire(revision.key)

    def ready(self) -> int:
        return sum(len(shelf.ready) for shelf in self.driver._stems._shelves.values())

    async def warmed(self, image: str, count: int = 1) -> None:
        """A first need, and so many stems ready after it."""
        await self.once(image)
        await self.until(lambda: self.ready() >= count)

    async def until(self, condition: Callable[[], bool]) -> None:
        await eventually(condition, READY_SECONDS)

    def sample(self, name: str, **values: str) -> float:
        return self.metrics.registry.get_sample_value(name, values) or 0.0


def keep(folder: Path, runtime: str) -> None:
    """Make a base's layers for another run of the tests, with the same interpreter: see `base_layers`."""
    (folder / runtime).mkdir(parents=True)
    for number, layer in enumerate(base_layers(runtime)):
        (folder / runtime / f"{number}.tar").write_bytes(layer)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2])
