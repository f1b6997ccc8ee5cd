"""Warm http function: the gateway against nginx, both in front of the same static C server, and that server alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.client import WRK_SECONDS, Load
from tests.benchmarks.measure import Figure, Report, Row, interleaved
from tests.benchmarks.nginx import nginx_before
from tests.support.server import RunningServer

ROUNDS = 3
CONNECTIONS = (1, 16, 64)
METHOD = (
    f"wrk, 1 thread, {WRK_SECONDS} s per point, at c1, c16 and c64, nothing pinned: client, proxy and function share"
    " the CPUs. direct: the C server on the host; nginx: 1 worker, no access log, keep-alive upstream to it; gateway:"
    " the same program as a function, one instance, one full CPU. CPU is the proxy's user + system time by its answers."
)
TOML = f"""
runtime = "provided"
interface = "http"
concurrency = {max(CONNECTIONS) + 36}
memory = {machine.FULL_CORE}
[scale]
min = 1
max = 1
"""


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        running = stack.enter_context(machine.server("--driver", "oci"))
        targets = ways(stack, running, work)
        methods: dict[str, Callable[[], tuple[Load, float]]] = {
            f"{name} c{count}": partial(machine.loaded, url, count, pid)
            for count in CONNECTIONS
            for name, (url, pid) in targets.items()
        }
        found = interleaved(methods, rounds or ROUNDS)
    return Report("proxy", METHOD, _rows(found), _figures(found))


def ways(stack: ExitStack, running: RunningServer, work: Path) -> dict[str, tuple[str, int]]:
    """To the same static program: the URL, and whose CPU time is to be counted."""
    program = machine.compiled(work)
    nginx = stack.enter_context(nginx_before(program, work))
    folder = machine.folder_of(work, "static", TOML)
    shutil.copy(program, folder / "bootstrap")
    running.faas("push", folder)
    machine.ready(running, "static", 1)
    return {
        "direct": (nginx.behind, nginx.program_pid),
        "nginx": (nginx.url, nginx.worker_pid),
        "gateway": (f"{running.public}/function/static", running.pid),
    }


Found = dict[str, list[tuple[Load, float]]]


def _rows(found: Found) -> list[Row]:
    rows = []
    for name, loads in found.items():
        rows += [
            Row(f"{name}: req/s", [load.rate for load, _ in loads], "1/s"),
            Row(f"{name}: p50", [load.p50 for load, _ in loads], "µs"),
            Row(f"{name}: p99", [load.p99 for load, _ in loads], "µs"),
        ]
        if not name.startswith("direct"):
            rows.append(Row(f"{name}: CPU per request", [cost for _, cost in loads], "µs"))
    return rows


def _figures(found: Found) -> list[Figure]:
    def median(name: str, value: Callable[[Load], float]) -> float:
        return Row(name, [value(load) for load, _ in found[name]]).p50

    def compared(count: int, value: Callable[[Load], float]) -> float:
        return median(f"gateway c{count}", value) / median(f"nginx c{count}", value)

    direct, nginx, gateway = (median(f"{name} c1", lambda load: load.p50) for name in ("direct", "nginx", "gateway"))
    failed = sum(load.failed for name in found if name.startswith("gateway") for load, _ in found[name])
    return [
        Figure("gateway ÷ nginx, req/s, c16", compared(16, lambda load: load.rate), 0.5, 0.8, more_is_better=True),
        Figure("gateway ÷ nginx, req/s, c64", compared(64, lambda load: load.rate), 0.5, 0.8, more_is_better=True),
        Figure("added p50 at c1 ÷ what nginx adds", (gateway - direct) / (nginx - direct), 2, 1.3),
        Figure("gateway ÷ nginx, p99, c64", compared(64, lambda load: load.p99), 2, 1.2),
        Figure("failed", failed, 0, unit="calls"),
    ]
