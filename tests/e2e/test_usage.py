"""What `faas usage` tells is what the REPORT lines say, exactly, through a restart; and what `kill -9` takes of it."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.writing import WRITE_SECONDS
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

CODE = """
import json, os, time

def handler(event, context):
    what = json.loads(event["body"])["what"] if "body" in event else event["what"]
    if what == "fail":
        raise ValueError("as asked")
    if what == "exit":
        os._exit(3)
    time.sleep(5 if what == "hang" else 0.01)
    return "ok"
"""
APP = """
import asyncio

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await asyncio.sleep(0.1)
    await send({"type": "http.response.start", "status": 500 if scope["path"] == "/bad" else 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
REPORT = re.compile(
    r"Duration: ([\d.]+) ms\tBilled Duration: (\d+) ms\tMemory Size: (\d+) MB\tMax Memory Used: (\d+) MB"
)
SENDING_SECONDS = 4.5  # the last three of it may be lost
WRITE_SLACK_SECONDS = 2.0  # of a loaded machine, beside the second between two writes


@dataclass(frozen=True)
class Line:
    """A REPORT line."""

    time: float
    duration: float
    billed: int
    memory: int
    most: int
    failed: bool
    cold: bool


def reports(server: RunningServer, function: str) -> list[Line]:
    log = server.get(f"/v1/functions/{function}/logs", api=True).text
    found = []
    for record in map(json.loads, log.splitlines()):
        text = record["message"]
        if record["stream"] != "system" or not text.startswith("REPORT ") or (match := REPORT.search(text)) is None:
            continue
        duration, billed, memory, most = match.groups()
        found.append(
            Line(
                record["time"], float(duration), int(billed), int(memory), int(most), "Status:" in text, "Init" in text
            )
        )
    return found


def usage(server: RunningServer, function: str) -> Any:
    (row,) = json.loads(server.faas("usage", function, "-o", "json").stdout)["usage"]
    return row


def same(row: Any, lines: list[Line]) -> None:
    """Usage and REPORT lines agree: whole numbers exactly, durations within what a line's two decimals leave."""
    assert row["requests"] == len(lines)
    assert row["errors"] == sum(line.failed for line in lines)
    assert row["cold_starts"] == sum(line.cold for line in lines)
    assert row["billed_ms"] == sum(line.billed for line in lines)
    assert row["mb_ms"] == sum(line.billed * line.memory for line in lines)
    assert row["max_memory_mb"] == max(line.most for line in lines)
    assert row["duration_ms"] == pytest.approx(sum(line.duration for line in lines), abs=0.01 * len(lines))


def send(server: RunningServer, what: str) -> int:
    return server.request("POST", "/function/mixed", json.dumps({"what": what}).encode()).status


def queue(server: RunningServer, what: str) -> str:
    body = json.dumps({"what": what}).encode()
    sent = server.request("POST", "/async-function/mixed", body, {"Content-Type": "application/json"})
    assert sent.status == 202
    return str(sent.headers["X-Call-Id"])


def ended(server: RunningServer, calls: list[str]) -> bool:
    found = [server.get(f"/v1/invocations/{call}", api=True).json()["status"] for call in calls]
    return all(status in ("success", "error") for status in found)


@pytest.mark.timeout(240)
def test_usage_equals_the_report_lines_of_whatever_ran_through_a_restart(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        toml = "memory = 192\ntimeout = 1\n[scale]\nmax = 4\n[async]\nretries = 0"
        server.push_code(tmp_path, "mixed", CODE, toml)
        plan = ["ok"] * 24 + ["fail"] * 5 + ["exit"] * 3 + ["hang"] * 2
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda what: send(server, what), plan[::2]))
            calls = [queue(server, what) for what in ("ok", "fail", "ok", "hang", "exit", "ok", "ok", "ok")]
            assert server.stop() == 0
            server.start()
            answers += pool.map(lambda what: send(server, what), plan[1::2])
        calls += [queue(server, "ok") for _ in range(8)]
        assert sorted(set(answers)) == [200, 502, 504]
        deadline = time.monotonic() + 60
        while not ended(server, calls):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        row, lines = usage(server, "mixed"), reports(server, "mixed")
        assert len(lines) >= len(plan) + len(calls) == 50
        assert sum(line.failed for line in lines) >= 13
        assert sum(line.cold for line in lines) > 4
        same(row, lines)
        assert json.loads(server.faas("usage", "-o", "json").stdout)["bill"]["requests"]["used"] == len(lines)
        server.faas("rm", "mixed", "--yes")
        assert usage(server, "mixed") == row


def test_requests_that_share_an_instance_are_billed_each(server: RunningServer, tmp_path: Path) -> None:
    folder = tmp_path / "billed-web"
    folder.mkdir()
    (folder / "main.py").write_text(APP + "# billed\n")
    (folder / "faas.toml").write_text(
        'name = "billed-web"\nruntime = "python"\napp = "main:app"\npublic = true\nconcurrency = 10\n[scale]\nmax = 1\n'
    )
    server.faas("push", folder)
    with ThreadPoolExecutor(10) as pool:
        began = time.monotonic()
        paths = ("/function/billed-web" + ("/bad" if n % 5 else "") for n in range(20))
        statuses = [answer.status for answer in pool.map(server.get, paths)]
        elapsed = time.monotonic() - began
    assert sorted(set(statuses)) == [200, 500]
    row, lines = usage(server, "billed-web"), reports(server, "billed-web")
    same(row, lines)
    assert (row["requests"], row["errors"]) == (20, 0)  # it has answered
    assert row["billed_ms"] >= 20 * 100
    assert row["billed_ms"] > elapsed * 1000  # more than there was time


@pytest.mark.timeout(240)
def test_kill_9_takes_what_ended_in_the_last_moments_alone(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        server.push_code(tmp_path, "mixed", CODE, "[scale]\nmax = 2")
        before = {"requests": 0, "mb_ms": 0}
        for _ in range(2):
            assert send(server, "ok") == 200  # a start takes its own time
            began, answered, unsure = time.time(), list[float](), WRITE_SECONDS + WRITE_SLACK_SECONDS
            while (now := time.time()) < began + SENDING_SECONDS or sum(at < now - unsure for at in answered) < 20:
                assert send(server, "ok") == 200
                answered.append(time.time())
                time.sleep(0.02)
            killed, sent = time.time(), 1 + len(answered)
            server.kill()
            server.start()
            row, sure_until = usage(server, "mixed"), killed - unsure
            sure = [line for line in reports(server, "mixed") if began <= line.time < sure_until]
            assert len(sure) > 10
            kept = row["requests"] - before["requests"]
            assert len(sure) <= kept <= sent
            assert row["mb_ms"] - before["mb_ms"] >= sum(line.billed * line.memory for line in sure)
            print(f"kill -9 took {sent - kept} of {sent} in {killed - began:.1f} s")
            before = row


def test_a_budget_refuses_with_its_reason_and_is_kept_through_a_restart(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        server.push_code(tmp_path, "mixed", CODE)
        server.faas("budget", "set", "most", "--requests", "3", "--throttle")
        for status in (200, 200, 200, 429):
            assert send(server, "ok") == status
        assert server.stop() == 0
        server.start()
        refused = server.request("POST", "/function/mixed", b'{"what": "ok"}')
        assert (refused.status, refused.headers["Reason"]) == (429, "budget")
        assert 0 < int(refused.headers["Retry-After"]) <= 86_400
        shown = server.faas("usage")
        assert "budget most: 100 % of 3 requests used; calls are refused until" in shown.stderr
        assert "3 of 1,000,000 free requests" in shown.stdout.splitlines()[-1]
        assert "budget most: 100 %" in server.log_file.read_text()
        server.faas("budget", "rm", "most")
        assert send(server, "ok") == 200
