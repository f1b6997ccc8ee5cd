"""Warm http function through servers of one process and of several, in one run: answers, and what each costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from tests.benchmarks import machine
from tests.benchmarks.client import WRK_SECONDS, Load, wrk
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.support.processes import children
from tests.support.server import RunningServer

ROUNDS = 3
CONNECTIONS = 64
PROCESSES = (1, 2, min(4, 2 * (os.cpu_count() or 1)))
METHOD = (
    f"wrk, 1 thread, {WRK_SECONDS} s per point, at c{CONNECTIONS}, nothing pinned: client, all processes of the server"
    " and the function share the CPUs, so that several processes can gain only where more CPUs are than these use. The"
    " function is the C program of `proxy`, one instance. CPU is user + system time of all processes by their answers."
)
TOML = f"""
runtime = "provided"
interface = "http"
concurrency = {8 * CONNECTIONS}
memory = {machine.FULL_CORE}
[scale]
min = 1
max = 1
"""


def serving(pid: int) -> list[int]:
    """The server's processes that serve the public port."""
    lanes = children(pid, "faas.server.lanes")
    return [pid, *lanes]


def loaded(running: RunningServer) -> tuple[Load, float]:
    """What wrk saw, and the CPU time of all its processes in µs by the requests that were answered."""
    pids = serving(running.pid)
    before = sum(map(machine.cpu_seconds, pids))
    load = wrk(f"{running.public}/function/static", CONNECTIONS)
    return load, (sum(map(machine.cpu_seconds, pids)) - before) / max(1, load.requests) * 1e6


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        program = machine.compiled(work)
        folder = machine.folder_of(work, "static", TOML)
        shutil.copy(program, folder / "bootstrap")
        methods: dict[str, Callable[[], tuple[Load, float]]] = {}
        for count in sorted(set(PROCESSES)):
            running = stack.enter_context(machine.server("--driver", "oci", "--processes", str(count)))
            running.faas("push", folder)
            machine.ready(running, "static", 1)
            methods[f"{count} processes"] = partial(loaded, running)
        found = interleaved(methods, rounds or ROUNDS)
    return Report("processes", METHOD, *_shown(found))


def _shown(found: dict[str, list[tuple[Load, float]]]) -> tuple[list[Row], list[Figure]]:
    rates = {name: Row(f"{name}: req/s", [load.rate for load, _ in loads], "1/s") for name, loads in found.items()}
    costs = {name: Row(f"{name}: CPU per request", [cost for _, cost in loads], "µs") for name, loads in found.items()}
    late = [Row(f"{name}: p99", [load.p99 for load, _ in loads], "µs") for name, loads in found.items()]
    one, *others = found
    figures = [ratio(f"{name} ÷ 1, req/s", rates[name], rates[one]) for name in others]
    figures += [ratio(f"{name} ÷ 1, CPU per request", costs[name], costs[one]) for name in others]
    failed = sum(load.failed for loads in found.values() for load, _ in loads)
    return [*rates.values(), *late, *costs.values()], [*figures, Figure("failed", failed, 0, unit="calls")]
