"""Functions that attack: the caller is told what happened, nothing of them survives, the next call gets a fresh
instance, and a steady load on their neighbour loses nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SOAK
from tests.support import hostile
from tests.support.leftovers import sandboxed
from tests.support.server import Answer, RunningServer
from tests.support.steady import GOOD, GOOD_TOML, Steady

pytestmark = [pytest.mark.root, pytest.mark.oci]

MB = 1_048_576
MEMORY_MB = 512
TMP_MB = 16
TOML = f"timeout = 2\ninit_timeout = 3\nmemory = {MEMORY_MB}\nephemeral_storage = {TMP_MB}\n[scale]\nmax = 1"
AFTERWARDS = 100  # calls of the neighbour
GONE_SECONDS = 10.0
ANSWERED, CRASHES, CLIENTS = (10_000, 100, 4) if SOAK else (400, 4, 4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("hostile")
    with RunningServer(folder / "data", "--driver", "oci") as running:
        running.push_code(folder, "good", GOOD, GOOD_TOML)
        running.push_code(folder, "hostile", hostile.CODE, TOML)
        running.push_code(folder, "other", hostile.CODE, TOML.replace("timeout = 2", "timeout = 60", 1))
        yield running


@pytest.fixture(autouse=True)
def neighbour(server: RunningServer) -> Iterator[None]:
    """A steady load beside each test, and calls after it: all are answered."""
    with Steady(server.public, "/function/good") as steady:
        yield
    assert steady.lost == []
    assert len(steady.taken) > 10
    for number in range(AFTERWARDS):
        answer = server.get(f"/function/good/after-{number}")
        assert (answer.status, answer.text) == (200, f"/after-{number}"), answer.body


@pytest.fixture
def bad(server: RunningServer) -> Iterator[Bad]:
    """Nothing of it is left where it has no instances."""
    yield Bad(server)
    for name in ("hostile", "other"):
        server.faas("scale", name, "0")
    none_survives(server)


def survivors(server: RunningServer) -> list[str]:
    return [row for row in sandboxed(server.id) if " hostile " in row]


def none_survives(server: RunningServer) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    while left := survivors(server):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


class Bad:
    """Calls of the hostile function."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server

    def call(self, mode: str, function: str = "hostile") -> Answer:
        return self.server.get(f"/function/{function}/{mode}")

    def name(self, function: str = "hostile") -> str:
        """Of the instance that answers."""
        answer = self.call("name", function)
        assert answer.status == 200, answer.body
        return str(answer.json())

    def log(self, answer: Answer, function: str = "hostile") -> str:
        return self.server.faas("logs", function, "--request-id", answer.headers["X-Request-Id"], "-n", "1000").stdout


ENDED = "Runtime.ExitError"
TOO_MUCH = "Runtime.OutOfMemory"
LATE = "Sandbox.Timedout"
HAD_ALL = f"all of its limit of {MEMORY_MB} MB"


@pytest.mark.parametrize(
    ("mode", "status", "error_type", "words"),
    [
        ("fork", 504, LATE, "Task timed out after 2.00 seconds"),
        ("memory", 502, TOO_MUCH, HAD_ALL),
        ("memory_at_once", 502, TOO_MUCH, HAD_ALL),
        ("memory_of_a_child", 502, TOO_MUCH, HAD_ALL),
        ("spin", 504, LATE, "Task timed out after 2.00 seconds"),
        ("daemon_and_loop", 504, LATE, "Task timed out after 2.00 seconds"),
        ("answer_late", 504, LATE, "Task timed out after 2.00 seconds"),
        ("leave", 502, ENDED, "exit status 0"),
        ("segfault", 502, ENDED, "signal: segmentation fault"),
    ],
)
def test_what_ends_an_instance_is_said_and_the_next_call_has_a_fresh_one(
    bad: Bad, mode: str, status: int, error_type: str, words: str
) -> None:
    function = "other" if error_type == TOO_MUCH else "hostile"  # to eat takes its time where others eat too
    before = bad.name(function)
    answer = bad.call(mode, function)
    assert (answer.status, answer.headers.get("X-Error-Type")) == (status, error_type), answer.body
    assert b"Traceback" not in answer.body
    assert bad.name(function) != before
    deadline = time.monotonic() + 20
    while "REPORT RequestId:" not in (log := bad.log(answer, function)):  # it comes when all of the instance has ended
        assert time.monotonic() < deadline, log
        time.sleep(0.05)
    assert words in log
    if error_type == TOO_MUCH:
        assert f"set memory = {2 * MEMORY_MB}" in log
        assert f"Max Memory Used: {MEMORY_MB} MB" in log


def test_every_place_to_write_has_an_end(bad: Bad) -> None:
    answer = bad.call("disk", "other")
    assert answer.status == 200, answer.body
    found = answer.json()
    assert found["root"] == found["code"] == "Read-only file system"
    full = "No space left on device"
    size = TMP_MB * MB * 1.1  # what it was promised, and what a file system needs for itself
    for kind, most in (("full", size), ("many", size / 16_384), ("sparse", size / 4096)):
        said, reached = found[f"/tmp {kind}"]
        assert (said, 0 < reached <= most) == (full, True), (kind, reached)
    assert found["/dev/shm full"] == [full, MB]
    assert found["/dev/shm many"][0] == found["/dev/shm sparse"][0] == full
    assert bad.call("name", "other").status == 200


def test_a_flood_of_output_is_cut_and_said(bad: Bad, server: RunningServer) -> None:
    before = resident(server)
    answer = bad.call("flood", "other")
    assert answer.status == 200, answer.body
    written = answer.json()
    log = bad.log(answer, "other")
    assert written > 10 * MB
    assert "bytes of output were cut" in log
    assert resident(server) - before < 64 * MB
    kept = sum(file.stat().st_size for file in (server.data / "logs").rglob("*other*/*"))
    assert 0 < kept < 3 * 16 * MB


def test_a_daemon_that_is_left_behind_holds_nothing_up_and_goes_with_its_instance(
    bad: Bad, server: RunningServer
) -> None:
    before = bad.name()
    assert bad.call("daemon").json() == "left one behind"
    assert bad.name() == before
    deadline = time.monotonic() + GONE_SECONDS
    while len(survivors(server)) < 2:
        assert time.monotonic() < deadline, "it did not leave one behind"
    server.faas("scale", "hostile", "0")
    none_survives(server)
    assert bad.name() != before


@pytest.mark.parametrize("mode", ["never_again", "two_polls"])
def test_who_does_not_come_for_its_next_event_is_late_and_replaced(bad: Bad, mode: str) -> None:
    before = bad.name()
    assert bad.call(mode).json() == {"never_again": "answered", "two_polls": "polled"}[mode]
    answer = bad.call("name")
    assert (answer.status, answer.headers.get("X-Error-Type")) == (504, LATE), answer.body
    assert bad.name() != before


def test_an_answer_to_another_event_is_refused(bad: Bad) -> None:
    before = bad.name()
    answer = bad.call("other_id")
    assert answer.status == 200, answer.body
    assert set(answer.json()) <= {400, 404}
    assert bad.name() == before


def test_the_first_answer_counts_and_others_are_refused(bad: Bad) -> None:
    answer = bad.call("answer_twice")
    assert (answer.status, answer.json()) == (200, "first")
    assert bad.call("name").status == 200
    # Now it has come to its end: it may have stood still in between.
    assert "answered [202, 400, 400]" in bad.server.faas("logs", "hostile", "-n", "50").stdout


def test_answers_at_the_very_deadline_are_their_own_callers_or_too_late(bad: Bad) -> None:
    """Each is answered with its own id, or told that it timed out; never with what another one waited for."""
    for _ in range(40 if SOAK else 2):
        answer = bad.call("at_the_deadline")
        if answer.status == 200:
            assert answer.json() == answer.headers["X-Request-Id"]
        else:
            assert (answer.status, answer.headers.get("X-Error-Type")) == (504, LATE), answer.body


def test_errors_and_answers_of_50_mb_are_refused_and_cost_the_server_no_memory(bad: Bad, server: RunningServer) -> None:
    before = resident(server)
    for mode in ("large_error", "large_answer"):
        answer = bad.call(mode, "other")  # 50 MB take their time on a third of a CPU
        assert (answer.status, answer.headers.get("X-Error-Type")) == (502, "Function.ResponseSizeTooLarge"), (
            answer.body
        )
        assert len(answer.body) < 1000
    assert resident(server) - before < 64 * MB
    assert bad.call("name").status == 200


def test_an_init_that_is_slow_is_told_to_its_caller_and_keeps_nobody_else_waiting(
    server: RunningServer, bad: Bad, tmp_path: Path
) -> None:
    code = "import time\nprint('thinking')\ntime.sleep(60)\n"
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "app.py").write_text(code)
    (tmp_path / "slow" / "faas.toml").write_text(
        'name = "slow-init"\nruntime = "python"\nhandler = "app.handler"\ninit_timeout = 2\npublic = true\n'
    )
    server.faas("push", tmp_path / "slow", "--no-check")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: server.get("/function/slow-init"), range(8)))
    assert {(a.status, a.headers.get("X-Error-Type")) for a in answers} == {(502, "Runtime.InitError")}, answers[0].body
    assert all("init did not finish within 2 s" in a.text for a in answers), answers[0].text
    server.faas("rm", "slow-init", "--yes")


def test_a_hundred_thousand_connections_to_the_runtime_api_cost_the_server_a_handful(
    bad: Bad, server: RunningServer
) -> None:
    files, memory, most = open_files(server), resident(server), 0
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(bad.call, "sockets")
        while not call.done():
            most = max(most, open_files(server))
            time.sleep(0.02)
    assert call.result().status in (200, 504), call.result().body
    assert most - files < 64
    assert resident(server) - memory < 32 * MB
    assert bad.call("name").status == 200


def test_nothing_of_one_functions_files_is_ever_seen_by_another(bad: Bad, server: RunningServer) -> None:
    for _ in range(10 if SOAK else 2):
        assert bad.call("secret").json() == "left it"
        server.faas("scale", "hostile", "0")
        names, size, secrets, other = bad.call("look", "other").json()
        assert (names, secrets, other) == ([], 0, 0)
        assert size > (TMP_MB - 2) * MB
        server.faas("scale", "other", "0")
        assert bad.call("look").json()[0] == []  # nor by its own next instance
        server.faas("scale", "hostile", "0")


SOMETIMES = """
import os

def handler(event, context):
    if event["rawPath"].endswith("crash"):
        os._exit(3)
    return {"statusCode": 200, "body": event["rawPath"]}
"""


def test_where_one_call_in_a_hundred_crashes_the_others_are_answered(server: RunningServer, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    server.push_code(tmp_path, "sometimes", SOMETIMES, "memory = 512\n[scale]\nmax = 4")
    marks = [f"/{number}" for number in range(ANSWERED - CRASHES)]
    for number in range(CRASHES):
        marks.insert(dice.randrange(len(marks)), f"/{number}-crash")

    def one(mark: str) -> tuple[str, int, Any]:
        answer = server.get(f"/function/sometimes{mark}")
        return mark, answer.status, answer.headers.get("X-Error-Type") or answer.text

    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = list(threads.map(one, marks))
    for mark, status, what in answers:
        assert (status, what) == ((502, ENDED) if mark.endswith("crash") else (200, mark))
    server.faas("rm", "sometimes", "--yes")


def resident(server: RunningServer) -> int:
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(server: RunningServer) -> int:
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
