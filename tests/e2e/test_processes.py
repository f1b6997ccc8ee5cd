"""`faas serve --processes 3`: a server that answers, counts and limits as one of one process, and loses one of them."""

from __future__ import annotations

import collections
import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.test_shutdown import COMPLETE, IDLE, REFUSED, TOLD, Caller, host_and_port
from tests.e2e.test_usage import reports, usage
from tests.support.leftovers import none_left
from tests.support.processes import children
from tests.support.server import RunningServer
from tests.support.two_ways import comparable

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(180)]

PROCESSES = 3
CLIENTS = 12
SLOTS, FEW = 30, 6  # of an instance: more than there are clients, and fewer
CODE = """
import asyncio, json, os

inside = most = 0

async def app(scope, receive, send):
    global inside, most
    if scope["type"] != "http":
        return
    inside += 1
    most = max(most, inside)
    try:
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        what = scope["path"].strip("/")
        if what.startswith("wait"):
            await asyncio.sleep(float(what[4:]))
        if what == "die":
            os._exit(3)
        if what == "stream":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"stream")]})
            for number in range(3):
                await send({"type": "http.response.body", "body": b"%d" % number * 5000, "more_body": True})
            await send({"type": "http.response.body"})
            return
        if what.startswith("lanes-"):
            await asyncio.sleep(0.02)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["path"].encode()})
            return
        told = {"most": most, "version": VERSION, "size": size} if what == "most" else \
            [VERSION, scope["method"], scope["path"], scope["query_string"].decode(), size]
        body = json.dumps(told).encode()
        status = 503 if what == "broken" else 200
        await send({"type": "http.response.start", "status": status,
                    "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
    finally:
        inside -= 1
"""
TOML = (
    'name = "{name}"\nruntime = "python"\napp = "main:app"\npublic = true\ntimeout = {timeout}\n'
    "concurrency = {slots}\n[scale]\nmin = 1\nmax = 1\n"
)
HEAD = "{} /function/lanes{} HTTP/1.1\r\nHost: a\r\n{}\r\n"
MATRIX = [
    HEAD.format("GET", "/a%20b?x=1&y", ""),
    HEAD.format("HEAD", "/x", ""),
    HEAD.format("POST", "/x", "Content-Length: 5\r\n") + "hello",
    HEAD.format("POST", "/x", "Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\n0\r\n\r\n",
    HEAD.format("GET", "/x", "") * 3,
    HEAD.format("GET", "/stream", "").replace("1.1", "1.0"),  # without chunks: those are as they came
    HEAD.format("GET", "/broken", ""),
    HEAD.format("GET", "/x", "").replace("1.1", "1.0"),
    HEAD.format("GET", "/x", "").replace("lanes", "lanes:v1"),
    HEAD.format("GET", "/x", "").replace("lanes", "nobody"),
    HEAD.format("GET", "/x", "Content-Length: 3\r\nContent-Length: 4\r\n"),
    HEAD.format("BREW", "/x", ""),
    HEAD.format("GET", "/x", "Expect: 100-continue\r\nContent-Length: 2\r\n"),
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "no http\r\n\r\n",
]


def pushed(
    server: RunningServer, folder: Path, name: str, version: int = 1, *, timeout: int = 5, slots: int = SLOTS
) -> None:
    code = folder / f"{name}-{version}"
    code.mkdir(exist_ok=True)
    (code / "main.py").write_text(f"VERSION = {version}  # of {name}\n{CODE}")
    (code / "faas.toml").write_text(TOML.format(name=name, timeout=timeout, slots=slots))
    server.faas("push", code)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("processes")
    running = RunningServer(folder / "data", "--driver", "oci", "--stems", "0", "--processes", str(PROCESSES))
    with none_left(running.id, str(running.data)), running:
        pushed(running, folder, "lanes")
        yield running


def metric(server: RunningServer, name: str) -> float:
    """The sum of its series."""
    page = server.get("/metrics", api=True).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in page if line.partition("{")[0].partition(" ")[0] == name)


def lanes_of(server: RunningServer) -> list[int]:
    return children(server.pid, "faas.server.lanes.process")


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lanes_serve(server: RunningServer, before: float) -> bool:
    return metric(server, "faas_lane_requests_total") > before


class Load:
    """`CLIENTS` connections that ask for `path` as long as the block lasts: all answers, and what broke."""

    def __init__(self, server: RunningServer, path: str, clients: int = CLIENTS) -> None:
        self._address, self._path = host_and_port(server.public), path
        self._enough, self._counting = threading.Event(), threading.Lock()
        self.bodies: collections.Counter[bytes] = collections.Counter()
        self.statuses: collections.Counter[int] = collections.Counter()
        self.broken: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        client = http.client.HTTPConnection(*self._address, timeout=30)
        with contextlib.closing(client):
            for number in itertools.count(1):
                if self._enough.is_set():
                    return
                if not number % 20:
                    client.close()  # another process may have the next one
                try:
                    client.request("GET", self._path)
                    answer = client.getresponse()
                    body = answer.read()
                    with self._counting:
                        self.bodies[body] += 1
                        self.statuses[answer.status] += 1
                except (OSError, http.client.HTTPException) as error:
                    self.broken.append(repr(error))
                    client.close()


def said(address: tuple[str, int], request: str) -> bytes:
    """Until nothing more comes."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(request.encode())
        answer = client.recv(65_536)
        client.settimeout(0.1)
        silences = 0  # one after another: others may have the machine for one of them
        while silences < 5:
            try:
                if not (piece := client.recv(65_536)):
                    break
                answer, silences = answer + piece, 0
            except TimeoutError:
                silences += 1
        return comparable(answer)


def test_many_connections_get_the_answers_of_a_server_of_one_process(
    many: RunningServer, server: RunningServer, tmp_path: Path
) -> None:
    pushed(server, tmp_path, "lanes")
    before = metric(many, "faas_lane_requests_total")
    one, all_of_them = host_and_port(server.public), host_and_port(many.public)
    asked = [(request, address) for request in MATRIX for address in (one, *[all_of_them] * PROCESSES)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda ask: (ask[0], said(ask[1], ask[0])), asked))
    found = {request: {answer for asked, answer in answers if asked == request} for request in MATRIX}
    assert [(request, different) for request, different in found.items() if len(different) > 1] == []
    until(lambda: metric(many, "faas_lane_requests_total") > before)
    server.faas("rm", "lanes", "--yes")


def test_no_more_run_at_once_than_may_and_each_is_counted_billed_and_logged_once(
    many: RunningServer, tmp_path: Path
) -> None:
    pushed(many, tmp_path, "counted", slots=FEW)
    before, calls = metric(many, "faas_lane_requests_total"), 1
    for clients in (FEW // 2, CLIENTS, FEW // 2):
        with Load(many, "/function/counted/wait0.02", clients) as load:
            time.sleep(0.7)
        assert load.broken == []
        assert set(load.statuses) == {200}
        calls += load.statuses.total()
    assert FEW // 2 < many.get("/function/counted/most").json()["most"] <= FEW
    until(lambda: metric_of(many, "counted") == calls)
    assert metric(many, "faas_lane_requests_total") > before
    assert usage(many, "counted")["requests"] == calls
    told = reports(many, "counted")
    assert len(told) == calls
    assert usage(many, "counted")["billed_ms"] == sum(line.billed for line in told)
    log = many.faas("logs", "counted").stdout
    assert log.count("START RequestId") == log.count("END RequestId") == calls


def metric_of(server: RunningServer, function: str) -> float:
    page = server.get("/metrics", api=True).text.splitlines()
    mine = [line for line in page if line.startswith("faas_invocations_total{") and f'function="{function}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in mine)


def test_a_lane_that_is_killed_takes_its_own_requests_along_and_no_slot(many: RunningServer) -> None:
    before = lanes_of(many)
    assert len(before) == PROCESSES - 1
    assert many.get("/healthz", api=True).text == "ok, 2 of 2 lane processes"
    assert many.get("/v1/top", api=True).json()["lanes"] == "2 of 2 lane processes"
    served = metric(many, "faas_lane_requests_total")
    with Load(many, "/function/lanes/wait0.01") as load:
        until(lambda: metric(many, "faas_lane_requests_total") > served + 2 * CLIENTS)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(lanes_of(many)) == PROCESSES - 1 and before[0] not in lanes_of(many))
        until(lambda: metric(many, "faas_lane_processes") == PROCESSES - 1)
        broken = len(load.broken)
        time.sleep(0.3)
    assert set(load.statuses) == {200}
    assert broken <= CLIENTS
    assert len(load.broken) == broken, "only when it died"
    assert before[1] in lanes_of(many)
    until(lambda: metric(many, "faas_lent_slots") == 0 and not busy(many, "lanes"))
    with Load(many, "/function/lanes/wait0.5", SLOTS) as load:
        until(lambda: metric_now(many, "lanes") == SLOTS)  # all of them at once: none is lost
    assert set(load.statuses) == {200}


def metric_now(server: RunningServer, function: str) -> float:
    page = server.get("/metrics", api=True).text.splitlines()
    mine = [line for line in page if line.startswith(f'faas_concurrent_executions{{function="{function}"')]
    return sum(float(line.rpartition(" ")[2]) for line in mine)


def busy(server: RunningServer, function: str) -> int:
    return int(server.get(f"/v1/functions/{function}", api=True).json()["instances"]["busy"])


def test_a_time_limit_and_an_instance_that_ends_are_told_as_by_one_process(many: RunningServer, tmp_path: Path) -> None:
    pushed(many, tmp_path, "limited", timeout=1)
    for path, status, kind in (("wait3", 504, "Sandbox.Timedout"), ("die", 502, "Runtime.ExitError")):
        with Load(many, "/function/limited/x", 4) as load:
            until(partial(lanes_serve, many, metric(many, "faas_lane_requests_total")))
            answers = []
            for _ in range(2):
                answers.append(many.get(f"/function/limited/{path}"))
                time.sleep(0.3)  # a lane may use what the main process has taken out for a moment yet
        assert [answer.status for answer in answers] == [status, status], answers
        assert {answer.headers["X-Error-Type"] for answer in answers} == {kind}
        assert load.broken == []
        assert many.get("/function/limited/x").status == 200


def test_a_new_version_under_load_fails_nobody_and_after_its_answer_none_gets_the_old_one(
    many: RunningServer, tmp_path: Path
) -> None:
    with Load(many, "/function/lanes/version") as load:
        until(partial(lanes_serve, many, metric(many, "faas_lane_requests_total")))
        pushed(many, tmp_path, "lanes", 2)
        load.bodies.clear()
        until(lambda: sum(dict(load.bodies).values()) > CLIENTS)
        late = dict(load.bodies)
    assert load.broken == []
    assert set(load.statuses) == {200}
    assert sum(late.values()) > CLIENTS
    old = sum(count for body, count in late.items() if json.loads(body)[0] == 1)
    assert old <= CLIENTS, "those that had begun"
    assert json.loads(many.get("/function/lanes/version").body)[0] == 2


def test_a_function_that_is_not_public_any_more_is_so_in_every_process_when_the_answer_comes(
    many: RunningServer,
) -> None:
    clients = [http.client.HTTPConnection(*host_and_port(many.public), timeout=30) for _ in range(CLIENTS)]
    known = many.get("/v1/functions/lanes", api=True).json()
    for public, expected in ((True, 200), (False, 401), (True, 200)):
        body = {"image": known["image"], "spec": {**known["spec"], "public": public}}
        changed = many.send("PUT", "/v1/functions/lanes", body)
        assert changed.status == 200, changed.text
        for client in clients:
            client.request("GET", "/function/lanes/x")
            answer = client.getresponse()
            assert (answer.status, bool(answer.read())) == (expected, True)
    for client in clients:
        client.close()


def test_nothing_that_was_taken_fails_when_the_server_ends_under_load(many: RunningServer) -> None:
    kinds = [(stays, plain) for stays in (True, True, True, False) for plain in (True, True, False)]
    callers = [Caller(many, "lanes", stays=stays, plain=plain) for stays, plain in kinds]
    for caller in callers:
        caller.start()
    time.sleep(0.7)
    assert many.process is not None
    lanes = lanes_of(many)
    many.process.send_signal(signal.SIGTERM)
    for caller in callers:
        caller.join(40)
        assert caller.failed == []
        assert set(caller.ends) <= {COMPLETE, REFUSED, TOLD, IDLE}
    assert many.process.wait(40) == 0
    assert [pid for pid in lanes if Path(f"/proc/{pid}").exists()] == []
