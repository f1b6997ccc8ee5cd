"""`python -m tests.benchmarks [NAME…] [--rounds N]`: the figures of this machine, and their ratios, in one run."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

from tests.benchmarks import (
    cold,
    density,
    dev,
    first_calls,
    gateway,
    half,
    keepalive,
    launcher,
    machine,
    neighbours,
    processes,
    proxy,
    registry,
    routes,
    scale,
    small,
    warm,
    websockets,
)
from tests.benchmarks.measure import Figure, Report, Row

BENCHMARKS: dict[str, Callable[[int | None], Report]] = {
    "cold": cold.measure,
    "launcher": launcher.measure,
    "warm": warm.measure,
    "proxy": proxy.measure,
    "half": half.measure,
    "processes": processes.measure,
    "gateway": gateway.measure,
    "registry": registry.measure,
    "routes": routes.measure,
    "small": small.measure,
    "dev": dev.measure,
    "scale": scale.measure,
    "keepalive": keepalive.measure,
    "first_calls": first_calls.measure,
    "density": density.measure,
    "neighbours": neighbours.measure,
    "websockets": websockets.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; all if none")
    said = "rounds of every benchmark, beside the one that warms up; functions of first_calls, instances of density"
    parser.add_argument("--rounds", type=int, help=said)
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in BENCHMARKS]:
        parser.error(f"there is no {unknown[0]}: {', '.join(BENCHMARKS)}")
    if asked.rounds is not None and not 1 <= asked.rounds <= 1000:
        parser.error("--rounds is 1 to 1000")
    if lacking := machine.missing():
        print(f"error: missing: {', '.join(lacking)}\n  try: ./tests/run bench, as root", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _ended)
    print(_here())
    for name in asked.names or BENCHMARKS:
        before = os.getloadavg()[0]
        began = time.monotonic()
        report = BENCHMARKS[name](asked.rounds)
        show(report)
        load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
        print(f"{load}; {time.monotonic() - began:.0f} s\n", flush=True)
    return 0


def _ended(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _here() -> str:
    """The machine, in one line."""

    def said(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        return (done.stdout or done.stderr).splitlines()[0].strip()

    parts = [
        f"{os.cpu_count()} CPUs",
        f"Linux {platform.release().partition('-')[0]}",
        f"Python {platform.python_version()}",
        said("runc", "--version"),
        f"Docker Engine {said('docker', 'info', '--format', '{{.ServerVersion}}')}",
        said("nginx", "-v").removeprefix("nginx version: "),
    ]
    return ", ".join(parts) + "\n"


def show(report: Report) -> None:
    print(f"## {report.title}\n\n{report.method}\n")
    print("| | p50 | p95 | min | n |\n|---|---:|---:|---:|---:|")
    for row in report.rows:
        print(_line(row))
    print("\n| | value | must | goal | |\n|---|---:|---:|---:|---|")
    for figure in report.figures:
        print(_bounds(figure))
    print()


def _line(row: Row) -> str:
    return f"| {row.name}, {row.unit} | {_n(row.p50)} | {_n(row.p95)} | {_n(row.least)} | {len(row.values)} |"


def _bounds(figure: Figure) -> str:
    sign = "≥" if figure.more_is_better else "≤"
    must, goal = (f"{sign} {bound:g}" if bound is not None else "" for bound in (figure.must, figure.goal))
    return f"| {figure.name} | {_n(figure.value)} {figure.unit} | {must} | {goal} | {figure.verdict} |"


def _n(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
