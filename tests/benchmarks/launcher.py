"""What it costs that only the launcher has root: the same driver in this process and behind the launcher, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from faas.metrics import Metrics
from tests.benchmarks.measure import Figure, Report, Row
from tests.support.images import program_layer
from tests.support.sandboxes import MB, probe
from tests.support.stem_functions import Bases
from worker.drivers.base import Driver, DriverPaths, PreparedImage, SandboxSpec
from worker.drivers.oci.driver import OciDriver
from worker.drivers.oci.standing import STEM_TMP_BYTES
from worker.launcher import process as launcher
from worker.launcher.client import LaunchedDriver
from worker.sandbox_spec import PIDS, RUNTIME_API_PORT

ROUNDS = 60
PAUSE_SECONDS = 0.25  # for pools to be filled again
READY_SECONDS = 60.0
STEMS = 2
ENV = {"_HANDLER": "app.handler"}
METHOD = (
    "create + listen (Runtime API) + start of a sandbox, of a driver in this process and of one behind the launcher, in"
    " turn, each beginning every other round; uvloop here as in the server. stem: a Python function, with a stem ready."
    " cold: a static program."
)


@dataclass
class Bench:
    """One driver with its images."""

    driver: Driver
    metrics: Metrics
    stem: PreparedImage = field(init=False)
    cold: PreparedImage = field(init=False)

    def stems(self) -> float:
        samples = (sample for metric in self.metrics.stems.collect() for sample in metric.samples)
        return sum(sample.value for sample in samples)

    async def once(self, image: PreparedImage, path: str, **spec: Any) -> float:
        """Milliseconds. Fails where the sandbox did not start on this path."""
        wanted = SandboxSpec(
            id=secrets.token_hex(8), image=image, env=ENV, memory_bytes=128 * MB, cpus=1.0, pids=PIDS, **spec
        )
        began = time.perf_counter()
        sandbox = await self.driver.create(wanted, at_once=True)
        listener = await sandbox.listen(RUNTIME_API_PORT)
        await self.driver.start(sandbox)
        taken = time.perf_counter() - began
        listener.close()
        if sandbox.path != path:
            raise RuntimeError(f"it started on the path {sandbox.path}")
        await self.driver.delete(sandbox.id)
        await asyncio.sleep(PAUSE_SECONDS)
        return taken * 1000

    async def from_stem(self) -> float:
        deadline = time.monotonic() + READY_SECONDS
        while self.stems() < STEMS:
            if time.monotonic() > deadline:
                raise RuntimeError("there are no stems")
            await asyncio.sleep(0.05)
        entry = self.stem.config.entrypoint
        return await self.once(self.stem, "stem", args=entry, workdir="/var/task", tmp_bytes=STEM_TMP_BYTES)

    async def from_nothing(self) -> float:
        return await self.once(self.cold, "cold", args=("/bin/probe", "wait"), workdir="/", tmp_bytes=0)


def measure(rounds: int | None) -> Report:
    return uvloop.run(_measure(rounds or ROUNDS))


async def _measure(rounds: int) -> Report:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="faas-bench-") as name:
        work = Path(name)
        bases = await asyncio.to_thread(Bases.build, "python", work / "unused")
        async with contextlib.AsyncExitStack() as stack:
            benches = {"in one process": _here(work, bases), "through the launcher": _launched(work, bases)}
            for bench in benches.values():
                await bench.driver.open()
                stack.push_async_callback(bench.driver.close)
                await _furnish(bench, bases)
            for number in range(rounds + 1):
                for name, bench in sorted(benches.items(), reverse=bool(number % 2)):
                    for kind, method in (("stem", bench.from_stem), ("cold", bench.from_nothing)):
                        value = await method()
                        if number:  # the first round warms up
                            found.setdefault(f"{kind}: {name}", []).append(value)
    rows = {name: Row(name, values) for name, values in found.items()}
    costs = [
        Figure(
            f"the launcher's cost per {kind} start (difference of the medians)",
            rows[f"{kind}: through the launcher"].p50 - rows[f"{kind}: in one process"].p50,
            0.5,
            unit="ms",
        )
        for kind in ("stem", "cold")
    ]
    return Report("launcher", METHOD, list(rows.values()), costs)


def _here(work: Path, bases: Bases) -> Bench:
    metrics = Metrics("")
    paths = DriverPaths(work / "here", secrets.token_hex(4))
    return Bench(OciDriver(paths, bases.images, stems=STEMS, metrics=metrics), metrics)


def _launched(work: Path, bases: Bases) -> Bench:
    metrics = Metrics("")
    options = launcher.Options(str(work / "launched"), secrets.token_hex(4), driver={"stems": STEMS})
    return Bench(LaunchedDriver(launcher.start(options), bases.images, metrics, lambda: None), metrics)


async def _furnish(bench: Bench, bases: Bases) -> None:
    files: dict[str, bytes | str | None] = {"var": None, "var/task": None, "var/task/app.py": b"handler = print\n"}
    bench.stem = await bench.driver.prepare(bases.function(files))
    bench.cold = await bench.driver.prepare(bases.images.add("probe", [program_layer({"bin/probe": probe()})]))
    entry = bench.stem.config.entrypoint
    first = SandboxSpec("first", bench.stem, entry, ENV, "/var/task", 128 * MB, 1.0, STEM_TMP_BYTES, pids=PIDS)
    await bench.driver.create(first)  # the first need of a base makes its stems
    await bench.driver.delete("first")
