"""SIGTERM: nothing new comes in, what runs has its grace, the rest is told, and the exit is clean and in time."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from faas.server import GRACE_SECONDS
from tests.support.leftovers import none_left
from tests.support.server import Answer, RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(180)]

SLEEPS = """
import time

def handler(event, context):
    time.sleep(float(event["rawPath"].strip("/")))
    return {"statusCode": 200, "body": "done"}
"""
STREAMS = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"on and on\\n", "more_body": True})
            await asyncio.sleep(0.2)
"""


def host_and_port(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def test_sigterm_under_load_ends_within_the_grace_and_leaves_nothing(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    with none_left(server.id, str(server.data)):
        server.start()
        server.push_code(tmp_path, "sleeps", SLEEPS, "timeout = 120")
        code = tmp_path / "streams"
        code.mkdir()
        (code / "main.py").write_text(STREAMS)
        (code / "faas.toml").write_text('name = "streams"\nruntime = "python"\napp = "main:app"\npublic = true\n')
        server.faas("push", code)
        answers: dict[str, Answer] = {}

        def call(seconds: str) -> None:
            answers[seconds] = server.get(f"/function/sleeps/{seconds}", timeout=90)

        callers = [threading.Thread(target=call, args=(seconds,)) for seconds in ("2", "100")]
        for caller in callers:
            caller.start()
        stream = subprocess.Popen(["curl", "-sN", f"{server.public}/function/streams/"], stdout=subprocess.DEVNULL)
        idle = http.client.HTTPConnection(*host_and_port(server.public))
        idle.request("GET", "/function/sleeps/0")
        assert idle.getresponse().read() == b"done"
        time.sleep(1)
        began = time.monotonic()
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        for url in (server.public, server.api, server.registry):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(host_and_port(url), timeout=2)
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""  # a connection that only waited is closed
        idle.close()
        assert server.process.wait(GRACE_SECONDS + 10) == 0
        took = time.monotonic() - began
        for caller in callers:
            caller.join()
        assert stream.wait(5) != 0
    assert (answers["2"].status, answers["2"].text) == (200, "done")
    assert answers["100"].status == 503, answers["100"].body
    assert int(answers["100"].headers["Retry-After"]) >= 1
    assert GRACE_SECONDS <= took < GRACE_SECONDS + 4


def test_a_server_with_nothing_to_do_stops_at_once(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        server.push_code(tmp_path, "sleeps", SLEEPS)
        assert server.get("/function/sleeps/0").status == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5
