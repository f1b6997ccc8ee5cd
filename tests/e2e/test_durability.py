"""What was accepted survives `kill -9`; a stopped server leaves nothing on the machine."""

from __future__ import annotations

import http.client
import itertools
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.support.leftovers import none_left
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

LEDGER = """
import base64, time

def handler(event, context):
    body = event["body"]
    if event.get("isBase64Encoded"):
        body = base64.b64decode(body).decode()
    time.sleep(0.02)
    print("RAN", body)
    return {"statusCode": 200, "body": "ok"}
"""
SLOW = """
import time

def handler(event, context):
    time.sleep(1.5)
    return {"statusCode": 200, "body": "done"}
"""
KILLS, CLIENTS, INSTANCES = (50, 8, 8) if SOAK else (2, 6, 4)
LONGEST_SECONDS = 1.5  # between a start and the next kill
PAUSE_SECONDS = 0.03  # of a client between two requests


class Client(threading.Thread):
    """Sends events one after the other until it is told to stop, whatever happens to the server.

    Its ledger is a file: a line for each 202 (what was sent, the call's id, the time), there before the next request.
    """

    def __init__(self, server: RunningServer, ledger: Path, number: int, enough: threading.Event) -> None:
        super().__init__()
        self.server, self.ledger, self.number, self.enough = server, ledger, number, enough

    def run(self) -> None:
        with open(self.ledger, "w", buffering=1) as ledger:
            for count in itertools.count():
                if self.enough.wait(PAUSE_SECONDS):
                    return
                name = f"n{self.number}-{count}"
                try:
                    sent = self.server.request(
                        "POST", "/async-function/ledger", name.encode(), {"Content-Type": "text/plain"}, timeout=20
                    )
                except (OSError, http.client.HTTPException):
                    continue  # the server died in the middle: nothing was promised
                if sent.status == 202:
                    ledger.write(f"{name} {sent.headers['X-Call-Id']} {time.time()}\n")


def executed(server: RunningServer) -> Counter[str]:
    """The function's ledger: what it wrote to its log, since it can reach neither the host's files nor its network."""
    lines = server.faas("logs", "ledger", "--since", "2h", "-n", "1000000").stdout
    return Counter(re.findall(r"RAN (n\d+-\d+)\b", lines))


def acknowledged(ledgers: list[Path]) -> int:
    return sum(ledger.read_text().count("\n") for ledger in ledgers if ledger.exists())


@pytest.mark.timeout(3600 if SOAK else 180)
def test_no_accepted_asynchronous_invocation_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Several clients are in the middle of requests whenever the kill comes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    enough = threading.Event()
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    ledgers = [tmp_path / f"client-{number}" for number in range(CLIENTS)]
    clients = [Client(server, ledger, number, enough) for number, ledger in enumerate(ledgers)]
    with none_left(server.id, str(server.data)):
        server.start()
        try:
            server.push_code(tmp_path, "ledger", LEDGER, f"[scale]\nmax = {INSTANCES}")
            for client in clients:
                client.start()
            for _ in range(KILLS):
                before = acknowledged(ledgers)
                time.sleep(dice.uniform(0.2, LONGEST_SECONDS))
                deadline = time.monotonic() + 30
                while acknowledged(ledgers) <= before + 5 * CLIENTS:
                    assert time.monotonic() < deadline, "nothing is accepted"
                    time.sleep(0.02)
                server.kill()
                server.start()
            time.sleep(0.5)
            enough.set()
            for client in clients:
                client.join()
            accepted = [line.split() for ledger in ledgers for line in ledger.read_text().splitlines()]
            names = {name for name, _, _ in accepted}
            deadline = time.monotonic() + (600 if SOAK else 60)
            while not names <= (ran := executed(server)).keys() and time.monotonic() < deadline:
                time.sleep(0.5)
            last = [server.get(f"/v1/invocations/{call}", api=True).json()["status"] for _, call, _ in accepted[-50:]]
        finally:
            enough.set()
            server.stop()
    assert len(names) > 5 * CLIENTS * KILLS
    assert names - ran.keys() == set()
    assert "error" not in last
    assert sum(ran.values()) - len(ran) <= KILLS * INSTANCES  # at most what was in flight ran again


def test_sigterm_finishes_what_runs_and_leaves_nothing(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    with none_left(server.id, str(server.data)):
        server.start()
        server.push_code(tmp_path, "slow", SLOW)
        answers: list[str] = []
        caller = threading.Thread(target=lambda: answers.append(server.get("/function/slow").text))
        caller.start()
        time.sleep(0.5)
        assert server.stop() == 0
        caller.join()
    assert answers == ["done"]


def test_functions_answer_again_after_kill_9_without_a_redeploy(tmp_path: Path) -> None:
    hello = "def handler(event, context):\n    return {'statusCode': 200, 'body': 'hello'}\n"
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    with none_left(server.id, str(server.data)):
        server.start()
        try:
            server.push_code(tmp_path, "hello", hello)
            assert server.get("/function/hello").text == "hello"
            server.kill()
            server.start()
            assert server.get("/function/hello").text == "hello"
        finally:
            server.stop()
