"""Small things that are felt: an idle server's memory, the command line's start, a changed line's way to its answer."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.support.server import RunningServer

ROUNDS = 7
IDLE_SECONDS = 3.0  # after its start, until its pools are filled
CHANGE_SECONDS = 30.0
METHOD = (
    "Memory: Pss of a server that has just started, with its pools filled and no function. Help: `faas --help` to its"
    " exit, beside the same interpreter doing nothing. Change: one line of a Python function that runs is written,"
    " `faas push`, then asked until the new answer is there; from the writing to the answer."
)
CODE = "def handler(event, context):\n    return {{'statusCode': 200, 'body': '{word}'}}\n"


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        running = stack.enter_context(machine.server("--driver", "oci"))
        time.sleep(IDLE_SECONDS)
        idle = machine.memory_mib(running.pid)
        folder = work / "change"
        word = CODE.format(word="zero")
        running.push_code(work, "change", word)
        numbers = itertools.count(1)
        faas = str(Path(sys.executable).with_name("faas"))
        methods: dict[str, Callable[[], float]] = {
            "faas --help": lambda: _run(faas, "--help"),
            "python -c pass": lambda: _run(sys.executable, "-c", "pass"),
            "one changed line to its answer": lambda: _changed(running, folder, f"word {next(numbers)}"),
        }
        found = interleaved(methods, rounds or ROUNDS)
    rows = {name: Row(name, values) for name, values in found.items()}
    figures = [
        Figure("idle server", idle, 200, 120, "MiB"),
        Figure("faas --help", rows["faas --help"].p50, 200, 120, "ms"),
        ratio("faas --help ÷ python -c pass", rows["faas --help"], rows["python -c pass"]),
        Figure("one changed line to its answer", rows["one changed line to its answer"].p50 / 1000, 1.5, 0.5, "s"),
    ]
    return Report("small", METHOD, list(rows.values()), figures)


def _run(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return (time.perf_counter() - began) * 1000


def _changed(running: RunningServer, folder: Path, word: str) -> float:
    began = time.perf_counter()
    (folder / "app.py").write_text(CODE.format(word=word))
    running.faas("push", folder)
    while running.get(f"/function/{folder.name}").text != word:
        if time.perf_counter() - began > CHANGE_SECONDS:
            raise RuntimeError(f"the new answer did not come within {CHANGE_SECONDS:.0f} s")
        time.sleep(0.002)
    return (time.perf_counter() - began) * 1000
