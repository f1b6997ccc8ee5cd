"""The benchmarks' arithmetic: rounds, medians, ratios, bounds, and wrk's report."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.benchmarks.client import parsed
from tests.benchmarks.measure import Figure, Row, interleaved, ratio

WRK = """Running 2s test @ http://127.0.0.1:1/
  Latency Distribution
     50%   87.00us
     75%    1.00ms
     90%    2.00ms
     99%    4.09ms
  2401 requests in 2.00s, 209.88KB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 7
Requests/sec:   1200.50
"""


def test_each_round_runs_every_method_once_and_begins_with_another() -> None:
    calls: list[str] = []

    def method(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = interleaved({name: partial(method, name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abcbcacababc"
    assert found == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}  # without the first round's


def test_a_row_says_median_nearest_rank_and_least() -> None:
    row = Row("r", [float(n) for n in range(20, 0, -1)])
    assert (row.p50, row.p95, row.least) == (10.5, 19.0, 1.0)
    assert (Row("one", [7.0]).p50, Row("one", [7.0]).p95) == (7.0, 7.0)


def test_a_ratio_is_one_of_medians() -> None:
    assert ratio("x", Row("a", [1, 2, 900]), Row("b", [8, 8, 1])).value == 0.25


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("f", 0.2, must=0.5, goal=0.2), "goal"),
        (Figure("f", 0.4, must=0.5, goal=0.2), "must"),
        (Figure("f", 0.6, must=0.5, goal=0.2), "SHORT"),
        (Figure("f", 0.6, must=0.5, goal=0.8, more_is_better=True), "must"),
        (Figure("f", 0.4, must=0.5, goal=0.8, more_is_better=True), "SHORT"),
        (Figure("f", 0, must=0), "must"),
        (Figure("f", 3), ""),
    ],
)
def test_a_figure_names_the_best_bound_that_holds(figure: Figure, verdict: str) -> None:
    assert figure.verdict == verdict


def test_wrks_report_is_read_in_microseconds_and_its_failures_are_added_up() -> None:
    load = parsed(WRK)
    assert (load.rate, load.p50, load.p99) == (1200.5, 87.0, 4090.0)
    assert (load.requests, load.failed) == (2401, 10)
    with pytest.raises(ValueError, match="99%"):
        parsed(WRK.replace("99%", "98%"))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nonsense"], "there is no nonsense: cold, "), (["--rounds", "0"], "1 to 1000")],
)
def test_the_command_refuses_what_it_does_not_know(project_root: Path, words: list[str], said: str) -> None:
    command = [sys.executable, "-m", "tests.benchmarks", *words]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
