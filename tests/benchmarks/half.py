"""Latency at half load: what the gateway adds to a request while it does half of what it can."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from tests.benchmarks import machine
from tests.benchmarks.client import Load, paced, wrk
from tests.benchmarks.measure import Figure, Report, Row, interleaved
from tests.benchmarks.proxy import ways
from tests.benchmarks.warm import push_echo

ROUNDS = 5
CONNECTIONS, INSTANCES = 64, 8
PACED_CONNECTIONS = 32
SECONDS = 4.0
CAPACITY_RUNS = 3
METHOD = (
    f"Half of what the gateway did per second for {CONNECTIONS} connections of wrk (median of {CAPACITY_RUNS}),"
    f" asked for by h2load over {PACED_CONNECTIONS} connections for {SECONDS:g} s: each asks at its times, whatever"
    " answers take. http: the static C program as a function (one instance, one full CPU), the same program direct and"
    f" behind nginx (1 worker), all at the same rate; Lambda: a Python `return event`, {INSTANCES} instances, at half"
    " of its own. Added: less direct's. Client, proxy and function share the CPUs."
)


class Half(NamedTuple):
    capacity: float  # per second
    loads: dict[str, list[Load]]


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        running = stack.enter_context(machine.server("--driver", "oci"))
        urls = {name: url for name, (url, _) in ways(stack, running, work).items()}
        http = _half({f"http, {name}": url for name, url in urls.items()}, urls["gateway"], rounds)
        push_echo(running, work / "busy", instances=INSTANCES)
        url = f"{running.public}/function/busy"
        event = _half({"Lambda, gateway": url}, url, rounds)
    found = {**http.loads, **event.loads}
    rows = [
        Row("http, gateway: capacity", [http.capacity], "1/s"),
        Row("Lambda, gateway: capacity", [event.capacity], "1/s"),
    ]
    for name, loads in found.items():
        rows.append(Row(f"{name}: p50", [load.p50 for load in loads], "µs"))
        rows.append(Row(f"{name}: p99", [load.p99 for load in loads], "µs"))
    return Report("half", METHOD, rows, _figures(http.loads, event.loads))


def _half(urls: dict[str, str], ours: str, rounds: int | None) -> Half:
    capacity = statistics.median(wrk(ours, CONNECTIONS).rate for _ in range(CAPACITY_RUNS))
    methods: dict[str, Callable[[], Load]] = {
        name: partial(paced, url, PACED_CONNECTIONS, capacity / 2, SECONDS) for name, url in urls.items()
    }
    return Half(capacity, interleaved(methods, rounds or ROUNDS))


def _figures(http: dict[str, list[Load]], event: dict[str, list[Load]]) -> list[Figure]:
    def median(name: str, value: Callable[[Load], float]) -> float:
        return statistics.median(value(load) for load in http[f"http, {name}"])

    def added(name: str, value: Callable[[Load], float]) -> float:
        return median(name, value) - median("direct", value)

    def p50(load: Load) -> float:
        return load.p50

    def p99(load: Load) -> float:
        return load.p99

    every = [load for loads in (*http.values(), *event.values()) for load in loads]
    return [
        Figure("http, added p50", added("gateway", p50), unit="µs"),
        Figure("http, added p50 ÷ what nginx adds", added("gateway", p50) / added("nginx", p50), 2, 1.3),
        Figure("http, added p99", added("gateway", p99), unit="µs"),
        Figure("http, p99 ÷ nginx's", median("gateway", p99) / median("nginx", p99), 2, 1.2),
        Figure("failed", sum(load.failed for load in every), 0, unit="calls"),
    ]
