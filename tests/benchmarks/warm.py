"""Warm Lambda function: what the gateway adds to the same handler driven by hand, and what a busy server costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.client import Connection, address_of
from tests.benchmarks.floor import floor
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.benchmarks.nginx import nginx_before
from tests.support.server import RunningServer

ROUNDS = 7
CALLS = 400  # per method and round, one after the other
INSTANCES, CONNECTIONS = 8, 64
METHOD = (
    f"`return event`, Python, one full CPU. {CALLS} calls per round, one after the other over one connection; a row's"
    f" values are the rounds' medians. The floor: the same event, sent to the same client in the same sandbox by a"
    f" blocking socket, event → answer. Then wrk with {CONNECTIONS} connections over {INSTANCES} instances; CPU is the"
    " server process's user + system time by the answers it gave, beside that of nginx in front of a static C server"
    " under the same load."
)
SPEC: dict[str, Any] = {"runtime": "python", "handler": "app.handler", "memory": machine.FULL_CORE}


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        running = stack.enter_context(machine.server("--driver", "oci"))
        push_echo(running, work / "gateway", instances=1)
        connection = Connection(address_of(running.public), "/function/gateway")
        stack.callback(connection.close)
        event = connection.get()
        code = (machine.PROGRAMS / "echo.py").read_bytes()
        by_hand = stack.enter_context(floor(work, code, SPEC))
        found = interleaved(
            {
                "gateway": lambda: _median(lambda: _timed(connection.get)),
                "floor": lambda: _median(lambda: by_hand.invoke(event)),
            },
            rounds or ROUNDS,
        )
        push_echo(running, work / "busy", instances=INSTANCES)
        nginx = stack.enter_context(nginx_before(machine.compiled(work), work))
        loads = interleaved(
            {
                "busy": lambda: machine.loaded(f"{running.public}/function/busy", CONNECTIONS, running.pid),
                "nginx": lambda: machine.loaded(nginx.url, CONNECTIONS, nginx.worker_pid),
            },
            max(1, (rounds or ROUNDS) // 2),
        )
    busy = loads["busy"]
    rows = {name: Row(f"Python, c1, {name}", values, "µs") for name, values in found.items()}
    costs = Row(f"server CPU per invocation, c{CONNECTIONS}", [cost for _, cost in busy], "µs")
    nginx_costs = Row(f"nginx's CPU per request, c{CONNECTIONS}", [cost for _, cost in loads["nginx"]], "µs")
    rates = Row(f"invocations per second, c{CONNECTIONS}", [load.rate for load, _ in busy], "1/s")
    tails = Row(f"p99, c{CONNECTIONS}", [load.p99 / 1000 for load, _ in busy], "ms")
    added = rows["gateway"].p50 - rows["floor"].p50
    figures = [
        ratio("gateway ÷ floor, c1 p50", rows["gateway"], rows["floor"], 3, 1.8),
        Figure("added by the gateway, c1 p50", added, unit="µs"),
        Figure(f"server CPU per invocation, c{CONNECTIONS}", costs.p50, 120, 60, "µs"),
        ratio(f"server CPU per invocation ÷ nginx's, c{CONNECTIONS}", costs, nginx_costs, 120 / 18.8, 60 / 18.8),
        Figure(f"failed, c{CONNECTIONS}", sum(load.failed for load, _ in busy), 0, unit="calls"),
    ]
    return Report("warm", METHOD, [*rows.values(), rates, tails, costs, nginx_costs], figures)


def push_echo(running: RunningServer, folder: Path, instances: int) -> None:
    """`return event`, with so many instances, all ready; the function has the folder's name."""
    toml = f'runtime = "python"\nhandler = "app.handler"\nmemory = {machine.FULL_CORE}'
    toml += f"\n[scale]\nmin = {instances}\nmax = {instances}"
    made = machine.folder_of(folder.parent, folder.name, toml, app=machine.PROGRAMS / "echo.py")
    running.faas("push", made)
    machine.ready(running, folder.name, instances)


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _median(call: Callable[[], float]) -> float:
    return statistics.median(call() for _ in range(CALLS)) * 1e6
