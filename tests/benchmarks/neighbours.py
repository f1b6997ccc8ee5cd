"""A steady load on a well-behaved function, alone and beside hostile ones: its p99, and what it loses."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.measure import Figure, Report, Row, interleaved
from tests.support import hostile
from tests.support.server import RunningServer
from tests.support.steady import GOOD, GOOD_TOML, Steady

ROUNDS = 3
WINDOW_SECONDS = 2.5
SETTLE_SECONDS = 0.5
PAUSE_SECONDS = 0.01
TOML = "timeout = 2\nmemory = 512\nephemeral_storage = 16\n[scale]\nmax = 1"
MODES = {  # what is called again and again
    "fork bomb": ["fork"],
    "memory eater": ["memory"],
    "8 spinning threads": ["spin"],
    "disk filler": ["disk"],
    "log flood": ["flood"],
    "1 % crashing": ["name"] * 99 + ["leave"],
    "connections to the Runtime API": ["sockets"],
    "answers of 50 MB": ["large_answer"],
}
METHOD = (
    f"One call each {PAUSE_SECONDS * 1000:.0f} ms to a Python function with 2 to 4 instances, open loop: a call's time"
    f" counts from when it was due. {WINDOW_SECONDS:g} s alone, and right afterwards as long beside a hostile function,"
    " which is called again as soon as it has ended. A row's values are the rounds' p99; a ratio is the rounds' median"
    " of beside ÷ alone just before."
)


@dataclass(frozen=True, slots=True)
class Pair:
    """p99 in ms."""

    alone: float
    beside: float


def measure(rounds: int | None) -> Report:
    lost: list[str] = []
    with machine.work_folder() as work, machine.server("--driver", "oci") as running:
        _push(running, work)

        def pair(modes: list[str]) -> Pair:
            windows = [window(running, []), window(running, modes)]
            lost.extend(line for steady in windows for line in steady.lost)
            return Pair(*(steady.p99_ms() for steady in windows))

        found = interleaved({name: partial(pair, modes) for name, modes in MODES.items()}, rounds or ROUNDS)
    rows = [Row("p99, alone", [pair.alone for pairs in found.values() for pair in pairs])]
    rows += [Row(f"p99, beside: {name}", [pair.beside for pair in pairs]) for name, pairs in found.items()]
    figures = [
        Figure(f"{name} ÷ alone, p99", statistics.median(pair.beside / pair.alone for pair in pairs), 2)
        for name, pairs in found.items()
    ]
    figures.append(Figure("lost by the steady load", len(lost), 0, unit="calls"))
    return Report("neighbours", METHOD, rows, figures)


def _push(running: RunningServer, work: Path) -> None:
    running.push_code(work, "good", GOOD, GOOD_TOML)
    running.push_code(work, "hostile", hostile.CODE, TOML)
    machine.ready(running, "good", 2)


def window(running: RunningServer, modes: list[str]) -> Steady:
    """The steady load beside the hostile function, called in these modes in turn; none where there are none."""
    enough = threading.Event()

    def call() -> None:
        for mode in itertools.cycle(modes):
            if enough.is_set():
                return
            running.get(f"/function/hostile/{mode}")

    caller = threading.Thread(target=call)
    caller.start()
    with Steady(running.public, "/function/good", PAUSE_SECONDS) as steady:
        time.sleep(WINDOW_SECONDS)
    enough.set()
    caller.join()
    time.sleep(SETTLE_SECONDS)
    return steady
