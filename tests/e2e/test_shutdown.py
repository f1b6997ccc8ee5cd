"""SIGTERM: nothing new comes in, what runs has its grace, the rest is told, and the exit is clean and in time."""

from __future__ import annotations

import collections
import http.client
import itertools
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.doors import SETTLE_SECONDS
from faas.server.stopping import GRACE_SECONDS
from tests.conftest import SOAK
from tests.support.leftovers import none_left
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(180)]

SLEEPS = """
import time

def handler(event, context):
    time.sleep(float(event["rawPath"].strip("/")))
    return {"statusCode": 200, "body": "done"}
"""
WEB = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "http":
        how = scope["path"].strip("/")
        await asyncio.sleep(float(how or 0))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not how:
            await send({"type": "http.response.body", "body": b"on and on\\n", "more_body": True})
            await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"done"})
"""
# Both write down what they have run, so that a request without an answer can be seen not to have been one of them.
QUICK = """
import time

def handler(event, context):
    print("ran", event["rawPath"], flush=True)
    time.sleep(0.02)
    return {"statusCode": 200, "body": event["rawPath"]}
"""
QUICK_WEB = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "http":
        print("ran", scope["path"], flush=True)
        await asyncio.sleep(0.02)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})
"""
ROUNDS = 10 if SOAK else 2
COMPLETE, REFUSED, TOLD, IDLE = "complete", "connection refused", "503 with Retry-After", "closed while it only waited"


def host_and_port(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_under_load_ends_within_the_grace_and_leaves_nothing(tmp_path: Path, processes: int) -> None:
    """What takes longer is told so, whichever way it came and wherever it was: the first call of each function has the
    instance that is there, the others have started theirs."""
    server = RunningServer(tmp_path / "data", "--driver", "oci", "--processes", str(processes))
    with none_left(server.id, str(server.data)):
        server.start()
        server.push_code(tmp_path, "sleeps", SLEEPS, "timeout = 120")
        code = tmp_path / "web"
        code.mkdir()
        (code / "main.py").write_text(WEB)
        (code / "faas.toml").write_text(
            'name = "web"\nruntime = "python"\napp = "main:app"\npublic = true\nconcurrency = 2\ntimeout = 120\n'
        )
        server.faas("push", code)
        stream = subprocess.Popen(["curl", "-sN", f"{server.public}/function/web/"], stdout=subprocess.DEVNULL)
        idle = http.client.HTTPConnection(*host_and_port(server.public))
        idle.request("GET", "/function/sleeps/0")
        assert idle.getresponse().read() == b"done"
        late = [
            Late(server, name, is_plain, "100") for name in ("sleeps", "web") for is_plain in (True, True, False, False)
        ]
        in_time = [Late(server, name, is_plain, "2") for name in ("sleeps", "web") for is_plain in (True, False)]
        for caller in (*late, *in_time):
            caller.start()
            time.sleep(0.05)
        time.sleep(1.5)
        began = time.monotonic()
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        for url in (server.public, server.api, server.registry):
            while not refuses(url):
                assert time.monotonic() < began + 10
                time.sleep(0.05)
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""  # a connection that only waited is closed
        idle.close()
        assert server.process.wait(GRACE_SECONDS + 10) == 0
        took = time.monotonic() - began
        for caller in (*late, *in_time):
            caller.join()
        assert stream.wait(5) != 0
    assert {caller.outcome for caller in in_time} == {"200 done"}
    assert {caller.outcome for caller in late} == {"503 ShuttingDown, Retry-After"}
    assert took >= GRACE_SECONDS  # and not twice that: the wait for its end was bounded


def refuses(url: str) -> bool:
    try:
        socket.create_connection(host_and_port(url), timeout=2).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # on its way there
        return False
    return False


class Late(threading.Thread):
    """One call of a function that sleeps for so long. `is_plain`: as `Caller`."""

    def __init__(self, server: RunningServer, name: str, is_plain: bool, seconds: str) -> None:
        super().__init__(daemon=True)
        self._address = host_and_port(server.public)
        self._path, self._is_plain = f"/function/{name}/{seconds}", is_plain
        self.outcome = f"{name}, {'plain' if is_plain else 'in chunks'}: "

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=90)
        try:
            if self._is_plain:
                connection.request("GET", self._path)
            else:
                connection.request("POST", self._path, body=iter([b"x"]), encode_chunked=True)
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status == 200:
                self.outcome = f"200 {text}"
            else:
                told = json.loads(text)["error"]["code"]
                self.outcome = f"{answer.status} {told}{', Retry-After' * (int(answer.headers['Retry-After']) >= 1)}"
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            self.outcome += repr(error)
        finally:
            connection.close()


def test_a_server_with_nothing_to_do_stops_at_once(tmp_path: Path) -> None:
    with RunningServer(tmp_path / "data", "--driver", "oci") as server:
        server.push_code(tmp_path, "sleeps", SLEEPS)
        assert server.get("/function/sleeps/0").status == 200
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < GRACE_SECONDS


class Caller(threading.Thread):
    """Calls a function until the server takes no connection any more, and says of each request how it ended.

    `stays`: by connections that stay open; else each by its own. `plain`: as the quick way takes it, else with a body
    in chunks.
    """

    names = itertools.count()

    def __init__(self, server: RunningServer, name: str, *, stays: bool, plain: bool) -> None:
        super().__init__(daemon=True)
        self._address = host_and_port(server.public)
        self._name, self._stays, self._plain = name, stays, plain
        self.ends: collections.Counter[str] = collections.Counter()
        self.unanswered: list[str] = []
        self.failed: list[str] = []

    def run(self) -> None:
        while True:
            try:
                connection = socket.create_connection(self._address, timeout=GRACE_SECONDS)
            except ConnectionRefusedError:
                self.ends[REFUSED] += 1
                return
            except OSError as error:  # reset before it was seen to be there: nothing had been sent
                self.ends[repr(error)] += 1
                continue
            connected_at = time.monotonic()
            with connection:
                for number, path in enumerate(self._paths()):
                    if not self._goes_on(connection, path, number, connected_at) or not self._stays:
                        break

    def _paths(self) -> Iterator[str]:
        while True:
            yield f"/{self._name}-{next(self.names)}-"

    def _goes_on(self, connection: socket.socket, path: str, number: int, connected_at: float) -> bool:
        """Whether the connection takes another request."""
        is_late = not number and time.monotonic() - connected_at >= SETTLE_SECONDS
        end = "Host: a\r\n\r\n" if self._plain else "Host: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        method = "GET" if self._plain else "POST"
        answer = http.client.HTTPResponse(connection, method=method)
        begun = False
        try:
            connection.sendall(f"{method} /function/{self._name}{path} HTTP/1.1\r\n{end}".encode())
            begun = bool(connection.recv(1, socket.MSG_PEEK))
            answer.begin()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            if is_late and not begun:  # it was not waited for so long
                self.ends[REFUSED] += 1
                self.unanswered.append(path)
            elif begun or not number:
                self.failed.append(f"{path}: request {number} of its connection, answer begun: {begun}, {error!r}")
            else:
                self.ends[IDLE] += 1
                self.unanswered.append(path)
            return False
        if answer.status == 503 and int(answer.headers["Retry-After"]) >= 1:
            self.ends[TOLD] += 1
            self.unanswered.append(path)
        elif (answer.status, body) == (200, path.encode()):
            self.ends[COMPLETE] += 1
        else:
            self.failed.append(f"{path}: {answer.status} {body!r}")
        return not answer.will_close


def test_no_request_that_was_taken_fails_when_the_server_ends_under_load(tmp_path: Path) -> None:
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    server.start()
    server.push_code(tmp_path, "quick", QUICK, "[scale]\nmin = 2\nmax = 4")
    code = tmp_path / "quick-web"
    code.mkdir()
    (code / "main.py").write_text(QUICK_WEB)
    (code / "faas.toml").write_text(
        'name = "quick-web"\nruntime = "python"\napp = "main:app"\npublic = true\nconcurrency = 10\n[scale]\nmin = 1\n'
    )
    server.faas("push", code)
    kinds = [
        (name, stays, plain) for name in ("quick", "quick-web") for stays in (True, False) for plain in (True, False)
    ]
    ends: collections.Counter[str] = collections.Counter()
    unanswered: list[str] = []
    for _ in range(ROUNDS):
        callers = [Caller(server, name, stays=stays, plain=plain) for name, stays, plain in kinds]
        for caller in callers:
            caller.start()
        time.sleep(1.5)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join(GRACE_SECONDS + 10)
            assert not caller.is_alive()
            assert caller.failed == []
            assert caller.ends[COMPLETE] > 0
            ends += caller.ends
            unanswered += caller.unanswered
        assert server.process.wait(GRACE_SECONDS + 10) == 0
        server.start()
    ran = "".join(log.read_text() for log in (server.data / "logs").rglob("*") if log.is_file())
    assert server.stop() == 0
    print(ends)
    assert set(ends) <= {COMPLETE, REFUSED, TOLD, IDLE}
    assert "ran /quick-" in ran
    assert [path for path in unanswered if f"ran {path}" in ran] == [], "run, and nobody was told"
