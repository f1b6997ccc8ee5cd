"""Arrivals at the very moment of a stop, and versions that change under a load: nobody fails or gets an old answer."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.support.leftovers import none_left
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(1800 if SOAK else 180)]

ARRIVALS = 5000 if SOAK else 120
FUNCTIONS = 3
APART_SECONDS = 0.004  # a stop and an arrival, at most; by chance either one first
MOVES = 1000 if SOAK else 30
CLIENTS = 4
ECHO = """
def handler(event, context):
    return {"statusCode": 200, "body": event["rawPath"]}
"""
VERSION = "def handler(event, context):\n    return {{'statusCode': 200, 'body': '{number}'}}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("races")
    running = RunningServer(folder / "data", "--driver", "oci")
    with none_left(running.id, str(running.data)), running:
        yield running


def scale_to_none(server: RunningServer, name: str) -> None:
    body = json.dumps({"instances": 0}).encode()
    answer = server.request("POST", f"/v1/functions/{name}/scale", body, {"Content-Type": "application/json"}, api=True)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("arriving", [1, 3])
def test_an_arrival_at_the_very_moment_of_a_stop_is_answered(
    server: RunningServer, tmp_path: Path, arriving: int
) -> None:
    """Each of some functions in turn: its instances are stopped while `arriving` calls come in."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    names = [f"echo-{arriving}-{number}" for number in range(FUNCTIONS)]
    for name in names:
        server.push_code(tmp_path, name, ECHO, 'memory = 512\n[scale]\nmax = 3\nidle = "0s"')
    failed: list[str] = []

    def arrive(name: str, mark: str, wait: float) -> None:
        time.sleep(wait)
        answer = server.get(f"/function/{name}{mark}")
        if (answer.status, answer.text) != (200, mark):
            failed.append(f"{name}{mark}: {answer.status} {answer.text[:300]}")

    def race(name: str) -> None:
        dice = random.Random(f"{seed} {name}")
        with ThreadPoolExecutor(arriving + 1) as threads:
            for number in range(ARRIVALS // (2 * FUNCTIONS * arriving)):
                arrive(name, "/there", 0)  # so that one is idle, and what stops is an instance
                calls = [
                    threads.submit(arrive, name, f"/{number}-{n}", dice.uniform(0, APART_SECONDS))
                    for n in range(arriving)
                ]
                time.sleep(dice.uniform(0, APART_SECONDS))
                scale_to_none(server, name)
                for call in calls:
                    call.result()

    with ThreadPoolExecutor(FUNCTIONS) as threads:
        list(threads.map(race, names))
    assert failed == []
    for name in names:
        server.faas("rm", name, "--yes")


@dataclass(frozen=True, slots=True)
class Said:
    """A call, and what it was answered; a move of `live`, and to which version."""

    began: float
    ended: float
    version: str


def test_after_a_move_of_live_no_call_gets_the_version_before(server: RunningServer, tmp_path: Path) -> None:
    for number in (1, 2):
        server.push_code(tmp_path, "moves", VERSION.format(number=number), "memory = 512\n[scale]\nmax = 4")
    calls: list[Said] = []
    wrong: list[str] = []
    enough = threading.Event()

    def client() -> None:
        while not enough.is_set():
            began = time.monotonic()
            answer = server.get("/function/moves")
            if answer.status == 200:
                calls.append(Said(began, time.monotonic(), answer.text))
            else:
                wrong.append(f"{answer.status} {answer.text[:300]}")

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    moves: list[Said] = []
    for number in range(MOVES):
        version = number % 2 + 1
        began = time.monotonic()
        body = json.dumps({"to": version}).encode()
        moved = server.request(
            "POST", "/v1/functions/moves/rollback", body, {"Content-Type": "application/json"}, api=True
        )
        assert moved.status == 200, moved.body
        moves.append(Said(began, time.monotonic(), str(version)))
        deadline = time.monotonic() + 20
        while not any(call.began > moves[-1].ended for call in calls[-50:]):  # each move is judged
            assert time.monotonic() < deadline, wrong
            time.sleep(0.005)
    enough.set()
    for thread in clients:
        thread.join()
    assert wrong == []
    judged = 0
    for move, following in zip(moves, [*moves[1:], Said(time.monotonic(), 0, "")], strict=True):
        between = [call for call in calls if call.began > move.ended and call.ended < following.began]
        judged += len(between)
        assert {call.version for call in between} <= {move.version}
    assert judged > MOVES / 2
    server.faas("rm", "moves", "--yes")
