"""Functions that misbehave get a clear error, and disturb neither their next invocation nor their neighbours.

Each test runs against a server with the oci driver and against one with the docker driver: the answers are the same.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Answer, RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

GOOD = """
def handler(event, context):
    return {"statusCode": 200, "body": event.get("body") or "fine"}
"""

BAD = """
import os, sys, time

def handler(event, context):
    mode = event["rawPath"].strip("/")
    if mode == "memory":
        hog = []
        while True:
            hog.append(bytearray(8 << 20))
    if mode == "loop":
        while True:
            pass
    if mode == "fork":
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            except OSError:
                break
        time.sleep(60)
    if mode == "exit":
        os._exit(3)
    if mode == "disk":
        try:
            with open("/tmp/full", "wb") as f:
                while True:
                    f.write(b"x" * (1 << 20))
        except OSError as error:
            return {"statusCode": 200, "body": error.strerror}
    if mode == "raise":
        raise ValueError("nobody outside sees this stack")
    return {"statusCode": 200, "body": "fine"}
"""


@pytest.fixture(scope="module", params=["oci", pytest.param("docker", marks=pytest.mark.docker)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    kind = str(request.param)
    with RunningServer(tmp_path_factory.mktemp(kind) / "data", "--driver", kind) as running:
        yield running


@pytest.fixture(scope="module")
def bad(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bad")
    server.push_code(folder, "bad", BAD, "timeout = 5\nmemory = 256\nephemeral_storage = 16\n[scale]\nmax = 4")
    return "/function/bad"


def test_the_driver_is_the_one_asked_for_and_hello_answers(
    server: RunningServer, request: pytest.FixtureRequest, project_root: Path
) -> None:
    url = server.faas("push", project_root / "tests" / "functions" / "hello").stdout.split()[-1]
    assert url == f"{server.public}/function/hello"
    assert server.get("/function/hello").status == 200
    assert server.get("/v1/info", api=True).json()["driver"] in request.node.callspec.id


@pytest.mark.parametrize(
    ("mode", "status", "error_type"),
    [
        ("memory", 502, "Runtime.OutOfMemory"),
        ("loop", 504, "Sandbox.Timedout"),
        ("fork", 504, "Sandbox.Timedout"),
        ("exit", 502, "Runtime.ExitError"),
        ("raise", 502, "ValueError"),
    ],
)
def test_a_violated_limit_is_a_clear_error_and_the_next_invocation_works(
    server: RunningServer, bad: str, mode: str, status: int, error_type: str
) -> None:
    answer = server.get(f"{bad}/{mode}")
    assert (answer.status, answer.headers.get("X-Error-Type")) == (status, error_type), answer.body
    assert b"Traceback" not in answer.body
    assert b"stackTrace" not in answer.body
    after = server.get(f"{bad}/fine")
    assert (after.status, after.text) == (200, "fine")


@pytest.mark.parametrize(
    ("sample", "status", "error_type"),
    [
        ("hungry", 502, "Runtime.OutOfMemory"),
        ("slow", 504, "Sandbox.Timedout"),
        ("fork", 504, "Sandbox.Timedout"),
        ("crash", 502, "Runtime.ExitError"),
    ],
)
def test_a_sample_that_breaks_a_limit_ends_so_each_time_it_is_called(
    server: RunningServer, project_root: Path, sample: str, status: int, error_type: str
) -> None:
    server.faas("push", project_root / "tests" / "functions" / sample)
    for _ in range(2):
        answer = server.get(f"/function/{sample}")
        assert (answer.status, answer.headers.get("X-Error-Type")) == (status, error_type), answer.body
    server.faas("rm", sample, "--yes")


def test_a_sample_that_cannot_start_is_refused_at_the_push_with_its_reason(
    server: RunningServer, project_root: Path
) -> None:
    pushed = server.faas("push", project_root / "tests" / "functions" / "init-error", check=False)
    assert pushed.returncode == 1
    assert "nowhere_to_be_found" in pushed.stderr
    assert server.get("/function/init-error").status == 404


def test_a_full_tmp_says_so_inside_and_costs_no_memory(server: RunningServer, bad: str) -> None:
    answer = server.get(f"{bad}/disk")
    assert (answer.status, answer.text) == (200, "No space left on device")
    assert server.get(f"{bad}/fine").status == 200


def test_an_init_that_never_ends_is_refused_at_the_push_with_its_stderr(server: RunningServer, tmp_path: Path) -> None:
    code = "import sys, time\nprint('still waiting', file=sys.stderr)\ntime.sleep(600)\n"
    (tmp_path / "app.py").write_text(code)
    (tmp_path / "faas.toml").write_text(
        'name = "stuck"\nruntime = "python"\nhandler = "app.handler"\ninit_timeout = 2\n'
    )
    pushed = server.faas("push", tmp_path, check=False)
    assert pushed.returncode == 1
    assert "still waiting" in pushed.stderr
    assert "2 s" in pushed.stderr
    assert server.get("/function/stuck").status == 404


def test_a_hog_a_loop_and_a_fork_bomb_beside_100_good_requests_lose_none_of_them(
    server: RunningServer, bad: str, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "good", GOOD, "[scale]\nmax = 4")
    with concurrent.futures.ThreadPoolExecutor(11) as threads:
        hostile = [threads.submit(server.get, f"{bad}/{mode}") for mode in ("memory", "loop", "fork")]

        def one(number: int) -> Answer:
            return server.request("POST", "/function/good", f"{number}".encode(), {"Content-Type": "text/plain"})

        answers = list(threads.map(one, range(100)))
        assert [a.text for a in answers if a.status == 200] == [str(n) for n in range(100)]
        assert sorted(h.result().status for h in hostile) == [502, 504, 504]
