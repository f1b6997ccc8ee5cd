"""What was accepted survives `kill -9`; a stopped server leaves nothing on the machine."""

from __future__ import annotations

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
BATCHES, BATCH, INSTANCES = (50, 200, 8) if SOAK else (2, 100, 4)


@pytest.mark.timeout(3600 if SOAK else 180)
def test_no_accepted_asynchronous_invocation_is_lost_to_kill_9(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    accepted: set[str] = set()
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    with none_left(server.id, str(server.data)):
        server.start()
        try:
            server.push_code(tmp_path, "ledger", LEDGER, f"[scale]\nmax = {INSTANCES}")
            for batch in range(BATCHES):
                fatal = dice.randrange(BATCH)
                for number in range(BATCH):
                    name = f"n{batch}-{number}"
                    headers = {"Content-Type": "text/plain"}
                    if server.request("POST", "/async-function/ledger", name.encode(), headers).status == 202:
                        accepted.add(name)
                    if number == fatal:
                        server.kill()
                        server.start()
            deadline = time.monotonic() + 60
            while True:
                lines = server.faas("logs", "ledger", "--since", "2h", "-n", "1000000").stdout
                ran = Counter(re.findall(r"RAN (n\d+-\d+)\b", lines))
                if accepted <= ran.keys() or time.monotonic() > deadline:
                    break
                time.sleep(0.5)
        finally:
            server.stop()
    assert len(accepted) > 0.9 * BATCHES * BATCH
    assert accepted - ran.keys() == set()
    assert sum(ran.values()) - len(ran) <= BATCHES * INSTANCES  # at most what was in flight ran again


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
