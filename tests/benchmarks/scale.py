"""Scaling: a burst on one function, first requests of many at once, and what warm ones notice of that."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.client import Connection, address_of, first_answer
from tests.benchmarks.crowd import Answered, all_at_once, ideal_seconds
from tests.benchmarks.measure import Figure, Report, Row, interleaved
from tests.support.server import RunningServer
from tests.support.steady import percentile

ROUNDS = 3
SINGLES = 5  # cold starts, one after the other, per round
CALLS, MOST, CALL_SECONDS = 200, 100, 0.1  # of the burst on one function
FUNCTIONS = 100
BESIDE = 60  # cold starts at once beside a warm function
QUIET_SECONDS = 3.0
PAUSE_SECONDS = 2.0  # removals must not run into what comes next
METHOD = (
    f"--stems 0 --precreated 0: no start finds anything made ahead. Single: the first request of a new Python function,"
    f" {SINGLES} per round, one after the other. Hundred: the first requests of {FUNCTIONS} new functions at the same"
    f" moment. Burst: {CALLS} requests at the same moment to one new function of {CALL_SECONDS:g} s without CPU,"
    f" max = {MOST}; its ideal is what {MOST} instances could do that are started one after the other on each core,"
    f" each in the time of a single one. Warm: 10 ms of work with a full CPU, one call after the other, alone and while"
    f" {BESIDE} other functions have their first request."
)
SPEC = {"runtime": "python", "handler": "app.handler", "interface": "lambda"}


class Scaling:
    """Rounds on one server; every function is new, and deleted afterwards."""

    def __init__(self, running: RunningServer, work: Path) -> None:
        self._running = running
        self._address = address_of(running.public)
        self._numbers = itertools.count(1)
        self._hello = self._push(work, "scale-hello", machine.PROGRAMS / "echo.py")
        self._tenth = self._push(work, "scale-tenth", machine.PROGRAMS / "tenth.py")
        self.refused = 0
        self.singles: list[float] = []
        work_image = self._push(work, "scale-work", machine.PROGRAMS / "work.py")
        machine.deploy(running, "scale-warm", work_image, {**SPEC, "memory": machine.FULL_CORE, "scale": {"min": 1}})
        machine.ready(running, "scale-warm", 1)

    def _push(self, work: Path, name: str, program: Path) -> str:
        folder = machine.folder_of(work, name, "\n".join(f'{key} = "{value}"' for key, value in SPEC.items()))
        (folder / "app.py").write_bytes(program.read_bytes())
        self._running.faas("push", folder, "--no-check")
        return str(machine.described(self._running, name)["image"])

    def _new(self, count: int, image: str, **spec: object) -> list[str]:
        names = [f"scale-{next(self._numbers)}" for _ in range(count)]
        for name in names:
            machine.deploy(self._running, name, image, {**SPEC, **spec})
        return names

    def _gone(self, names: list[str]) -> None:
        for name in names:
            machine.delete(self._running, name)
        time.sleep(PAUSE_SECONDS)

    def _crowd(self, paths: list[str]) -> list[Answered]:
        answers = all_at_once(self._address, paths)
        self.refused += sum(answer.status != 200 for answer in answers)
        return answers

    def single(self) -> float:
        """ms, median."""
        names = self._new(SINGLES, self._hello)
        taken = []
        for name in names:
            began = time.perf_counter()
            first_answer(self._address, f"/function/{name}")
            taken.append((time.perf_counter() - began) * 1000)
            time.sleep(0.2)
        self._gone(names)
        return percentile(taken, 0.5)

    def hundred(self) -> float:
        """p99, ms."""
        names = self._new(FUNCTIONS, self._hello)
        answers = self._crowd([f"/function/{name}" for name in names])
        self._gone(names)
        return percentile((answer.seconds for answer in answers), 0.99) * 1000

    def burst(self) -> float:
        """ms until the last one has its answer."""
        names = self._new(1, self._tenth, scale={"max": MOST})
        answers = self._crowd([f"/function/{names[0]}"] * CALLS)
        self._gone(names)
        return max(answer.seconds for answer in answers) * 1000

    def warm_alone(self) -> float:
        """p99, ms."""
        until = time.monotonic() + QUIET_SECONDS
        return self._warm(lambda: time.monotonic() < until)

    def warm_beside(self) -> float:
        """p99, ms, as long as the others have not all been answered."""
        names = self._new(BESIDE, self._hello)
        crowd = threading.Thread(target=self._crowd, args=([f"/function/{name}" for name in names],))
        crowd.start()
        taken = self._warm(crowd.is_alive)
        crowd.join()
        self._gone(names)
        return taken

    def _warm(self, going_on: Callable[[], bool]) -> float:
        connection, taken = Connection(self._address, "/function/scale-warm"), []
        try:
            while going_on():
                began = time.perf_counter()
                connection.get()
                taken.append((time.perf_counter() - began) * 1000)
                time.sleep(0.002)
        finally:
            connection.close()
        return percentile(taken, 0.99)


def measure(rounds: int | None) -> Report:
    with ExitStack() as stack:
        work = stack.enter_context(machine.work_folder())
        running = stack.enter_context(machine.server("--driver", "oci", "--stems", "0", "--precreated", "0"))
        scaling = Scaling(running, work)
        methods = {
            "single": scaling.single,
            "hundred": scaling.hundred,
            "burst": scaling.burst,
            "alone": scaling.warm_alone,
            "beside": scaling.warm_beside,
        }
        found = interleaved(methods, rounds or ROUNDS)
    cores = os.cpu_count() or 1
    single = Row("single cold start", found["single"])
    hundred = Row(f"{FUNCTIONS} first requests at once, p99", found["hundred"])
    burst = Row(f"{CALLS} at once on one function, the last", found["burst"])
    alone, beside = Row("warm alone, p99", found["alone"]), Row(f"warm beside {BESIDE} starts, p99", found["beside"])
    ideal = ideal_seconds(CALLS, CALL_SECONDS, MOST, single.p50 / 1000, cores) * 1000
    figures = [
        Figure("requests that were refused or failed", scaling.refused, 0, unit=""),
        Figure(
            f"{FUNCTIONS} at once: p99 ÷ ({FUNCTIONS} × single ÷ cores)",
            hundred.p50 * cores / FUNCTIONS / single.p50,
            1,
        ),
        Figure(f"burst: the last ÷ the ideal ({ideal:.0f} ms)", burst.p50 / ideal, 3),
        Figure("warm p99 beside starts ÷ alone", beside.p50 / alone.p50),
    ]
    return Report("scale", METHOD, [single, hundred, burst, alone, beside], figures)
