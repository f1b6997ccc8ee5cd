"""One memory budget for all instances: who makes room, who waits, who is refused, and a host that never runs out."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import sandboxed
from tests.support.server import Answer, RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

MB = 1_048_576
BUDGET = 600
CODE = """
import time

kept = b""

def handler(event, context):
    global kept
    what, _, amount = event["rawPath"].strip("/").partition("/")
    if what == "sleep":
        time.sleep(float(amount))
    if what == "keep":
        kept = b"x" * (int(amount) << 20)
    if what == "eat":
        hog = []
        while True:
            hog.append(bytearray(4 << 20))
    return "done"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("memory")
    flags = ("--driver", "oci", "--memory-budget", str(BUDGET), "--stems", "0")
    with RunningServer(folder / "data", *flags) as running:
        for name in ("first", "second", "third"):
            running.push_code(folder, name, CODE, "memory = 256\nqueue_timeout = 2\n[scale]\nmax = 1")
        running.push_code(folder, "eater", CODE, "memory = 128\nqueue_timeout = 30\n[scale]\nmax = 8\n")
        yield running


def instances(server: RunningServer) -> dict[str, int]:
    """Function → how many it has."""
    rows = server.get("/v1/top", api=True).json()["functions"]
    return {row["name"]: total for row in rows if (total := sum(row["instances"].values()))}


def evictions(server: RunningServer) -> int:
    return int(server.get("/v1/top", api=True).json()["memory"]["evictions"])


def metric(server: RunningServer, series: str) -> float:
    (line,) = [line for line in server.get("/metrics", api=True).text.splitlines() if line.startswith(f"{series} ")]
    return float(line.removeprefix(series))


def settled(server: RunningServer) -> None:
    time.sleep(0.6)  # the server looks twice a second


def charged(server: RunningServer) -> float:
    """MB, of functions' instances."""
    return metric(server, 'faas_memory_charged_bytes{kind="invoked"}') / MB


def test_idle_functions_are_charged_what_they_have_so_that_more_fit_than_could_run(server: RunningServer) -> None:
    for name in ("first", "second", "third"):
        assert server.get(f"/function/{name}").status == 200
    settled(server)
    assert set(instances(server)) >= {"first", "second", "third"}
    assert 9 < charged(server) < 200
    assert evictions(server) == 0
    calls = [server.get(f"/function/{name}") for name in ("first", "second", "third") * 3]
    assert {call.status for call in calls} == {200}
    assert evictions(server) == 0


def test_the_third_function_makes_the_longest_unused_one_go(server: RunningServer) -> None:
    for name in ("first", "second", "third", "eater"):
        server.faas("scale", name, "0")
    settled(server)
    assert instances(server) == {}
    assert server.get("/function/first/keep/180").status == 200
    time.sleep(4)  # longer than starts differ: what a start costs counts too
    assert server.get("/function/second/keep/180").status == 200
    settled(server)
    before = evictions(server)
    assert set(instances(server)) & {"first", "second", "third"} == {"first", "second"}
    assert server.get("/function/third").status == 200
    settled(server)
    assert set(instances(server)) >= {"second", "third"}
    assert evictions(server) == before + 1  # the first one: where it is again, it was started in what is free now
    assert metric(server, "faas_memory_budget_bytes") == BUDGET * MB
    assert 184 < charged(server) <= BUDGET
    assert metric(server, 'faas_memory_evictions_total{kind="invoked"}') == before + 1


def is_busy(server: RunningServer, name: str) -> bool:
    return bool(server.get(f"/v1/functions/{name}", api=True).json()["instances"]["busy"])


def test_where_all_are_busy_it_waits_and_is_refused_when_the_wait_is_over(server: RunningServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(server.get, f"/function/{name}/sleep/4") for name in ("first", "second")]
        deadline = time.monotonic() + 30
        while not all(is_busy(server, name) for name in ("first", "second")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        began = time.monotonic()
        refused = server.get("/function/third")
        waited = time.monotonic() - began
        assert (refused.status, refused.headers["Reason"]) == (429, "memory")
        assert refused.headers["Retry-After"] == "1"
        assert f"the {BUDGET} MB that all instances may have together" in refused.text
        assert waited > 1.9  # and not for those that are busy, or it would have been answered
        time.sleep(0.4)
        assert server.get("/function/third").status == 200  # the busy ones end within its wait
        assert {call.result().status for call in busy} == {200}
    assert metric(server, 'faas_throttles_total{function="third",reason="memory"}') == 1


def test_eaters_at_the_sum_of_the_budget_are_ended_one_by_one_and_the_host_never_runs_out(
    server: RunningServer,
) -> None:
    """Eight that would have 1,024 MB together: their own limits kill them, and never more than four are there."""
    charged: list[int] = []
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(server.get, "/function/eater/eat") for _ in range(8)]
        while not all(call.done() for call in calls):
            memory = server.get("/v1/top", api=True).json()["memory"]
            charged.append(sum(memory["charged_bytes"].values()))
            time.sleep(0.1)
    answers: list[Answer] = [call.result() for call in calls]
    assert {(a.status, a.headers.get("X-Error-Type")) for a in answers} == {(502, "Runtime.OutOfMemory")}, (
        answers[0].text + server.log_tail()
    )
    assert max(charged) <= BUDGET * MB
    assert max(charged) >= 256 * MB
    assert peak(server) <= BUDGET * MB
    assert server.get("/function/first").status == 200


def peak(server: RunningServer) -> int:
    """Bytes that all instances had at once, at most, since the server's start: the kernel's own figure."""
    roots = Path("/sys/fs/cgroup/memory/faas"), Path("/sys/fs/cgroup/faas")
    files = [
        file
        for root in roots
        for name in ("memory.max_usage_in_bytes", "memory.peak")
        if (file := root / server.id / name).exists()
    ]
    return int(files[0].read_text())


def test_what_the_budget_could_never_hold_is_refused_at_the_deploy(server: RunningServer, tmp_path: Path) -> None:
    for keys, words in (
        ("memory = 601", "memory: 601 MB can never run here: all instances may have 600 MB together"),
        ("memory = 256\n[scale]\nmin = 3", "scale.min: 3 instances of 256 MB can never run here"),
    ):
        folder = tmp_path / "big"
        folder.mkdir(exist_ok=True)
        (folder / "app.py").write_text(CODE)
        (folder / "faas.toml").write_text(f'name = "big"\nruntime = "python"\nhandler = "app.handler"\n{keys}\n')
        pushed = server.faas("push", folder, check=False)
        assert pushed.returncode == 2
        assert words in pushed.stderr
        assert "memory_budget" in pushed.stderr
    assert server.get("/function/big").status == 404


def test_top_shows_it(server: RunningServer) -> None:
    assert server.get("/function/first").status == 200
    settled(server)
    first, titles, *rows = server.faas("top").stdout.splitlines()
    assert first.startswith("memory ")
    assert "of 600 MB" in first
    assert "CHARGED" in titles
    (row,) = [row.split() for row in rows if row.startswith("first ")]
    assert row[1:5] == ["0", "1", "0", "0"]
    assert 0 < float(row[5]) < float(row[7]) < 100


def test_forty_idle_instances_in_a_budget_for_eight_are_answerable_and_a_crash_leaves_none_of_them(
    tmp_path: Path,
) -> None:
    flags = ("--driver", "oci", "--memory-budget", "1024")
    with RunningServer(tmp_path / "data", *flags) as running:
        toml = 'memory = 128\nqueue_timeout = 60\n[scale]\nmax = 40\nidle = "1h"'
        running.push_code(tmp_path, "many", CODE, toml)
        running.faas("scale", "many", "40")
        deadline = time.monotonic() + 120
        while instances(running).get("many", 0) < 40 and time.monotonic() < deadline:
            time.sleep(0.3)
        time.sleep(1)
        memory = running.get("/v1/top", api=True).json()["memory"]
        assert instances(running) == {"many": 40}
        assert sum(memory["charged_bytes"].values()) < 40 * 20 * MB
        with concurrent.futures.ThreadPoolExecutor(40) as threads:
            for path in ("/function/many", "/function/many/sleep/0.2"):
                answers = [call.result() for call in [threads.submit(running.get, path) for _ in range(40)]]
                assert {answer.status for answer in answers} == {200}, answers[0].text + running.log_tail()
        assert peak(running) <= 1024 * MB
        assert len(sandboxed(running.id)) > 20
        running.kill()
        running.start()
        assert sandboxed(running.id) == []
        assert running.get("/function/many").status == 200
