"""Reserved instances on a real server: theirs alone, no more than these, through a restart, until the function goes."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Answer, RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

CODE = """
import time

def handler(event, context):
    time.sleep(float(event["rawPath"].strip("/") or 0))
    return "done"
"""
FLAGS = ("--driver", "oci", "--stems", "0", "--memory-budget", "900", "--max-concurrency", "30", "--burst", "40")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("reserved")
    with RunningServer(folder / "data", *FLAGS) as running:
        running.push_code(folder, "kept", CODE, "memory = 256\nqueue_timeout = 0\n[scale]\nreserved = 2")
        running.push_code(folder, "greedy", CODE, "memory = 128\nqueue_timeout = 60\n[scale]\nmax = 8")
        yield running


@pytest.fixture
def callers() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        yield pool


def busy(server: RunningServer, name: str) -> int:
    return int(server.get(f"/v1/functions/{name}", api=True).json()["instances"]["busy"])


def until_busy(server: RunningServer, name: str, count: int) -> None:
    deadline = time.monotonic() + 30
    while busy(server, name) != count:
        assert time.monotonic() < deadline, f"{busy(server, name)} are busy, not {count}"
        time.sleep(0.05)


def test_others_may_flood_and_it_has_its_instances_at_once(
    server: RunningServer, callers: concurrent.futures.ThreadPoolExecutor
) -> None:
    for restarted in (False, True):
        if restarted:
            server.stop()
            server.start()
        flood = [callers.submit(server.get, "/function/greedy/2") for _ in range(10)]
        until_busy(server, "greedy", 3)  # of 900 MB 512 are reserved
        its = [callers.submit(server.get, "/function/kept/1") for _ in range(2)]
        assert [call.result().status for call in its] == [200, 200]
        assert sum(call.done() for call in flood) < 10
        assert busy(server, "greedy") <= 3
        assert {call.result().status for call in flood} == {200}


def test_it_has_no_more_than_these(server: RunningServer, callers: concurrent.futures.ThreadPoolExecutor) -> None:
    calls = [callers.submit(server.get, "/function/kept/2") for _ in range(5)]
    answers: list[Answer] = [call.result() for call in calls]
    assert sorted(answer.status for answer in answers) == [200, 200, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    assert refused.headers["Retry-After"]
    metrics = server.get("/metrics", api=True).text
    reason = 'reason="ReservedFunctionConcurrentInvocationLimitExceeded"'
    assert f'faas_throttles_total{{function="kept",{reason}}} 3.0' in metrics
    assert 'faas_concurrency_limit{function="kept"} 2.0' in metrics
    assert "2, reserved" in server.faas("describe", "kept").stdout


def test_what_cannot_be_reserved_is_refused_with_the_numbers(server: RunningServer, tmp_path: Path) -> None:
    body = '{"spec": {"name": "more", "memory": 300, "scale": {"reserved": 1}}, "image": "kept:latest", "check": false}'
    refused = server.request("PUT", "/v1/functions/more", body.encode(), api=True)
    assert refused.status == 400
    assert all(f"{number} MB" in refused.text for number in (300, 900, 512, 128))


def test_it_goes_with_its_function(server: RunningServer, callers: concurrent.futures.ThreadPoolExecutor) -> None:
    server.faas("rm", "kept", "--yes")
    flood = [callers.submit(server.get, "/function/greedy/3") for _ in range(21)]  # more for who started first
    until_busy(server, "greedy", 7)
    assert {call.result().status for call in flood} == {200}
