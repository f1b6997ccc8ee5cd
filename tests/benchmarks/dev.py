"""`faas dev`: a saved file's way to the next request's answer, beside the same line's way through `faas push`."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.measure import Figure, Report, Row, interleaved, ratio
from tests.support.server import RunningServer

ROUNDS = 25
BEGIN_SECONDS, ANSWER_SECONDS = 60.0, 30.0
QUIET_SECONDS = 0.3  # between two saves, as nobody types quicker
METHOD = (
    "One file of a Python function is written, then its URL is asked each 5 ms until the new answer is there; from the"
    " writing to the answer. dev: the command runs in another process on this machine. push: `faas push` is run then."
)
CODE = "def handler(event, context):\n    return {{'statusCode': 200, 'body': '{word}'}}\n"


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        running = stack.enter_context(machine.server("--driver", "oci"))
        running.push_code(work, "pushed", CODE.format(word="zero"))
        running.push_code(work, "saved", CODE.format(word="zero"))
        url = stack.enter_context(_dev(running, work / "saved"))
        words = (f"word {number}" for number in itertools.count(1))
        methods: dict[str, Callable[[], float]] = {
            "faas dev": lambda: _changed(running, work / "saved", next(words), url),
            "faas push": lambda: _changed(running, work / "pushed", next(words), "/function/pushed", push=True),
        }
        found = interleaved(methods, rounds or ROUNDS)
    dev, push = (Row(name, found[name]) for name in ("faas dev", "faas push"))
    figures = [
        Figure("save to answer, p50", dev.p50 / 1000, 1.0, 0.3, "s"),
        Figure("save to answer, p95", dev.p95 / 1000, 1.0, unit="s"),
        ratio("faas dev ÷ faas push", dev, push),
    ]
    return Report("dev", METHOD, [dev, push], figures)


@contextmanager
def _dev(running: RunningServer, folder: Path) -> Iterator[str]:
    """The path of its function."""
    with open(folder.with_suffix(".said"), "w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "faas.cli", "dev", str(folder), "--as", "bench"],
            env={**os.environ, "FAAS_URL": running.api, "FAAS_TOKEN": running.token, "NO_COLOR": "1"},
            stdout=said,
            stderr=said,
        )
        try:
            path, until = f"/function/{folder.name}--dev-bench", time.monotonic() + BEGIN_SECONDS
            while running.get(path).status != 200:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(folder.with_suffix(".said").read_text())
                time.sleep(0.05)
            yield path
        finally:
            process.terminate()
            process.wait(BEGIN_SECONDS)


def _changed(running: RunningServer, folder: Path, word: str, path: str, *, push: bool = False) -> float:
    time.sleep(QUIET_SECONDS)
    began = time.perf_counter()
    (folder / "app.py").write_text(CODE.format(word=word))
    if push:
        running.faas("push", folder)
    while running.get(path).text != word:
        if time.perf_counter() - began > ANSWER_SECONDS:
            raise RuntimeError(f"the new answer did not come within {ANSWER_SECONDS:.0f} s")
        time.sleep(0.005)
    return (time.perf_counter() - began) * 1000
