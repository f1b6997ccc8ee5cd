"""Density: how many idle Python instances of one function a memory budget holds, what each costs, and whether they
still answer."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.client import address_of
from tests.benchmarks.measure import Figure, Report, Row
from tests.support.server import RunningServer
from tests.support.standing import family

INSTANCES = 500
BUDGET_MB = 6144
MEMORY_MB = 128
START_SECONDS = 300.0
STILL_SECONDS = 10.0  # without another one that is ready: no more will come
REST_SECONDS = 5.0  # before they are measured: they are idle for long
HOLD_SECONDS = 0.5  # so that calls which come together need an instance each
ANSWER_SECONDS = 120.0
BUSY = BUDGET_MB // MEMORY_MB
METHOD = (
    f"One Python function, {MEMORY_MB} MB, as many instances as asked for (max; --rounds says how many) at once, on a"
    f" server with a memory budget of {BUDGET_MB} MB. Lost: MemAvailable before − after {REST_SECONDS:.0f} s of rest,"
    f" by instances. Then one call after the other, as many as there are instances; then as many at once, each of which"
    f" keeps its instance for {HOLD_SECONDS:g} s: one that is in use is charged all of its memory, so at most {BUSY}"
    " may be, less what the idle ones have. Time to answer: call → answer, less what the handler slept."
)
CODE = """
import os, time

NAME = os.urandom(4).hex()

def handler(event, context):
    began = time.perf_counter()
    time.sleep(float((event.get("queryStringParameters") or {}).get("hold", 0)))
    return {"name": NAME, "slept": time.perf_counter() - began}
"""


@dataclass(frozen=True, slots=True)
class Called:
    """One call: which instance answered, and in how many ms, without what it slept; a status that is not 200."""

    name: str
    milliseconds: float
    status: int


def measure(rounds: int | None) -> Report:
    wanted = rounds or INSTANCES
    with machine.work_folder() as work, machine.server("--driver", "oci", "--memory-budget", str(BUDGET_MB)) as running:
        _push(running, work, wanted)
        _scaled(running, 0)
        time.sleep(REST_SECONDS)
        before, own_before = available_mib(), own_mib(running.pid)
        files_before = open_files(running.pid)
        began = time.monotonic()
        reached, took = _started(running, wanted, began)
        time.sleep(REST_SECONDS)
        lost = (before - available_mib()) / max(1, reached)
        own = (own_mib(running.pid) - own_before) / max(1, reached)
        files = (open_files(running.pid) - files_before) / max(1, reached)
        single = [asyncio.run(_call(running, 0.0)) for _ in range(reached)]
        calls = asyncio.run(_together(running, reached))
        threads = sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in family(running.pid))
    good = [call for call in calls if call.status == 200]
    alone = [call for call in single if call.status == 200]
    rows = [Row("time to answer, one call after the other", [call.milliseconds for call in alone])] if alone else []
    rows += [Row("time to answer, all at once", [call.milliseconds for call in good])] if good else []
    figures = [
        Figure("idle instances at once", reached, wanted, unit="", more_is_better=True),
        Figure("memory lost per instance", lost, 12, 5, "MiB"),
        Figure("of that, the server's own", own, unit="MiB"),
        Figure("started per second", reached / took, unit="1/s"),
        Figure("server's open files per instance", files, unit=""),
        Figure("server's threads", threads, unit=""),
        Figure(
            "different instances that answered", len({c.name for c in good}), min(BUSY, reached) * 0.9, None, "", True
        ),
        Figure("failed", len(single) + len(calls) - len(alone) - len(good), 0, unit="calls"),
    ]
    return Report("density", METHOD, rows, figures)


def _push(running: RunningServer, work: Path, most: int) -> None:
    toml = f'memory = {MEMORY_MB}\nqueue_timeout = 60\ntimeout = 120\n[scale]\nmax = {most}\nidle = "1h"'
    running.push_code(work, "dense", CODE, toml)


def _scaled(running: RunningServer, instances: int) -> None:
    body = json.dumps({"instances": instances}).encode()
    running.request("POST", "/v1/functions/dense/scale", body, {"Content-Type": "application/json"}, api=True)


def _started(running: RunningServer, wanted: int, began: float) -> tuple[int, float]:
    """Returns how many are idle when all are there or no more come, and after how many seconds the last one was."""
    _scaled(running, wanted)
    reached, last = 0, began
    while reached < wanted and time.monotonic() - last < STILL_SECONDS and time.monotonic() - began < START_SECONDS:
        time.sleep(0.2)
        idle = machine.described(running, "dense")["instances"]["idle"]
        if idle > reached:
            reached, last = idle, time.monotonic()
    return reached, max(0.2, last - began)


async def _together(running: RunningServer, calls: int) -> list[Called]:
    return await asyncio.gather(*(_call(running, HOLD_SECONDS) for _ in range(calls)))


async def _call(running: RunningServer, hold: float) -> Called:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            began = time.perf_counter()
            reader, writer = await asyncio.open_connection(*address_of(running.public))
            try:
                line = f"GET /function/dense?hold={hold:.2f} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                writer.write(line.encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.close()
        taken = time.perf_counter() - began
        status = int(head.split()[1])
        if status != 200:
            return Called("", 0.0, status)
        answer = json.loads(body)
        return Called(answer["name"], (taken - answer["slept"]) * 1000, status)
    except (OSError, TimeoutError, IndexError, ValueError):
        return Called("", 0.0, 0)


def available_mib() -> float:
    """MemAvailable (proc(5)): what could be had without swapping, caches that can go included."""
    rows = Path("/proc/meminfo").read_text().splitlines()
    return int(next(row.split()[1] for row in rows if row.startswith("MemAvailable:"))) / 1024


def open_files(server: int) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in family(server))


def own_mib(server: int) -> float:
    return sum(machine.memory_mib(pid) for pid in family(server))
