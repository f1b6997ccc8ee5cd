"""What it costs that only the launcher has root: the same worker with the driver in this process and behind the
launcher, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from faas.leases import Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from tests.benchmarks.measure import Figure, Report, Row
from tests.support.images import program_layer
from tests.support.sandboxes import MB, probe
from tests.support.stem_functions import Bases
from worker.drivers.base import Driver, DriverPaths, PreparedImage, SandboxSpec
from worker.drivers.oci.driver import OciDriver
from worker.drivers.oci.standing import STEM_TMP_BYTES
from worker.launcher import process as launcher
from worker.launcher.client import LaunchedDriver
from worker.pool import Pool
from worker.sandbox_spec import PIDS, RUNTIME_API_PORT

ROUNDS = 60
PAUSE_SECONDS = 0.25  # for pools to be filled again
READY_SECONDS = 60.0
STEMS = 2
MOST_MS = 0.5  # per start
ENV = {"_HANDLER": "app.handler"}
METHOD = (
    "A worker with its driver in this process and one with its driver behind the launcher, each beginning every"
    " other round; uvloop as in the server. claim → answer: from the claim of a slot of a new Python function, with a"
    " stem ready, to its answer. verbs: create + listen (Runtime API) + start alone, from a stem or (cold) of a static"
    " program; a stem runs before they are through, so what they cost is in part beside the way to the answer, and"
    " what a start costs whoever waits for it is the first figure."
)
ANSWER, STEM, COLD = "stem, claim → answer", "stem, verbs", "cold, verbs"


@dataclass
class Bench:
    """A worker with its driver and images."""

    driver: Driver
    metrics: Metrics
    logs: Path
    pool: Pool = field(init=False)
    stem: PreparedImage = field(init=False)
    cold: PreparedImage = field(init=False)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def open(self, bases: Bases) -> None:
        self.pool = Pool(self.driver, self.logs, self.metrics)
        await self.pool.open()
        files: dict[str, bytes | str | None] = {
            "var": None,
            "var/task": None,
            "var/task/app.py": b"def handler(event, context):\n    return event\n",
        }
        self.stem = await self.driver.prepare(bases.function(files))
        self.cold = await self.driver.prepare(bases.images.add("probe", [program_layer({"bin/probe": probe()})]))
        await self._once(self.stem, None, **self._of_stem)  # the first need of a base makes its stems

    async def close(self) -> None:
        await self.pool.close(0)

    # In ms; each fails where the start took another path than it is named for

    async def to_answer(self) -> float:
        await self._stems_ready()
        name = f"f{next(self.numbers)}"
        spec = parse({"name": name, "runtime": "python", "handler": "app.handler"})
        revision = Revision(RevisionKey("default", name, 1), spec, self.stem.reference, Interface.LAMBDA)
        await self.pool.prepare(revision)
        began = time.perf_counter()
        await self.pool.scale(revision, 1)
        async with self.pool.acquire(revision, Invocation(secrets.token_hex(8), Trigger.API, READY_SECONDS)) as lease:
            await lease.invoke(b"{}")
            taken = time.perf_counter() - began
            assert lease.cold_start is not None
            _check(lease.cold_start.path, "stem")
        await self.pool.retire(revision.key)
        await asyncio.sleep(PAUSE_SECONDS)
        return taken * 1000

    async def from_stem(self) -> float:
        await self._stems_ready()
        return await self._once(self.stem, "stem", **self._of_stem)

    async def from_nothing(self) -> float:
        return await self._once(self.cold, "cold", args=("/bin/probe", "wait"), workdir="/", tmp_bytes=0)

    @property
    def _of_stem(self) -> dict[str, Any]:
        return {"args": self.stem.config.entrypoint, "workdir": "/var/task", "tmp_bytes": STEM_TMP_BYTES}

    async def _once(self, image: PreparedImage, path: str | None, **spec: Any) -> float:
        wanted = SandboxSpec(
            id=secrets.token_hex(8), image=image, env=ENV, memory_bytes=128 * MB, cpus=1.0, pids=PIDS, **spec
        )
        began = time.perf_counter()
        sandbox = await self.driver.create(wanted, at_once=True)
        listener = await sandbox.listen(RUNTIME_API_PORT)
        await self.driver.start(sandbox)
        taken = time.perf_counter() - began
        listener.close()
        if path is not None:
            _check(sandbox.path, path)
        await self.driver.delete(sandbox.id)
        await asyncio.sleep(PAUSE_SECONDS)
        return taken * 1000

    async def _stems_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self._stems() < STEMS:
            if time.monotonic() > deadline:
                raise RuntimeError("there are no stems")
            await asyncio.sleep(0.05)

    def _stems(self) -> float:
        samples = (sample for metric in self.metrics.stems.collect() for sample in metric.samples)
        return sum(sample.value for sample in samples)


def _check(path: str, wanted: str) -> None:
    if path != wanted:
        raise RuntimeError(f"it started on the path {path}")


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
                await bench.open(bases)
                stack.push_async_callback(bench.close)
            for number in range(rounds + 1):
                for name, bench in sorted(benches.items(), reverse=bool(number % 2)):
                    methods = {ANSWER: bench.to_answer, STEM: bench.from_stem, COLD: bench.from_nothing}
                    for kind, method in methods.items():
                        value = await method()
                        if number:  # the first round warms up
                            found.setdefault(f"{kind}: {name}", []).append(value)
    rows = {name: Row(name, values) for name, values in sorted(found.items())}
    costs = [
        Figure(
            f"the launcher's cost per start ({kind}; difference of the medians)",
            rows[f"{kind}: through the launcher"].p50 - rows[f"{kind}: in one process"].p50,
            must,
            unit="ms",
        )
        for kind, must in ((ANSWER, MOST_MS), (COLD, MOST_MS), (STEM, None))
    ]
    return Report("launcher", METHOD, list(rows.values()), costs)


def _here(work: Path, bases: Bases) -> Bench:
    metrics = Metrics("")
    paths = DriverPaths(work / "here", secrets.token_hex(4))
    driver = OciDriver(paths, bases.images, stems=STEMS, metrics=metrics)
    return Bench(driver, metrics, work / "here-logs")


def _launched(work: Path, bases: Bases) -> Bench:
    metrics = Metrics("")
    options = launcher.Options(str(work / "launched"), secrets.token_hex(4), driver={"stems": STEMS})
    driver = LaunchedDriver(launcher.start(options), bases.images, metrics, lambda: None)
    return Bench(driver, metrics, work / "launched-logs")
