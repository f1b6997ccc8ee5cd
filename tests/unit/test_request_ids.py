"""Every way to fail has a request id in its answer; what is ours to mend has it in the server's log too."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from faas.doors import Doors
from faas.errors import (
    FaasError,
    InitFailed,
    InstanceExited,
    OutOfMemory,
    ShuttingDown,
    StorageFull,
    Throttled,
    TimedOut,
    Unavailable,
)
from faas.leases import InvocationResult
from faas.listener import bound, listen
from faas.metrics import Metrics
from faas.protocol import Revision
from faas.redirect import redirect_app
from faas.settings import Address
from registry.app import create_app
from registry.errors import RegistryError
from registry.service import Registry
from tests.support.control import Answered, Control, control, serving
from tests.support.data_path import application, data_path, put, revision
from tests.support.fake_worker import FakeWorker
from tests.support.raw_http import serving as served
from tests.support.raw_http import talk

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BY_FUNCTIONS = {
    "raises": OutOfMemory("too much", hint="set memory = 256"),
    "exits": InstanceExited("exit status 3"),
    "hangs": TimedOut("Task timed out"),
    "starts": InitFailed("no handler"),
}
BY_US: dict[str, Exception] = {
    "fault": FaasError("our fault"),
    "bug": RuntimeError("a bug"),
    "part": Unavailable("a part does not answer"),
    "disk": StorageFull(),
}
REFUSED = {"busy": Throttled(), "stopping": ShuttingDown()}


async def fails(worker: Revision, event: bytes) -> InvocationResult:
    """As the event says, or the path of the request in it."""
    asked = json.loads(event)
    raise {**BY_FUNCTIONS, **BY_US, **REFUSED}[asked.get("how") or asked["rawPath"].removeprefix("/")]


@dataclass(frozen=True)
class Way:
    """A request that fails with `status`."""

    method: str
    path: str
    status: int
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    public: bool = False
    token: str | None = None
    in_log: bool = False


INVOKE = "/v1/functions/hello/invocations"
WAYS = {
    "no such function, public": Way("GET", "/function/none", 404, public=True),
    "no such path, public": Way("GET", "/nothing", 404, public=True),
    "not public": Way("GET", "/function/closed", 401, public=True),
    "wrong token": Way("GET", "/function/closed", 401, public=True, token="faas_wrong"),
    "expects what nobody does": Way("POST", "/function/hello", 417, b"x", {"Expect": "miracles"}, public=True),
    "maintenance": Way("GET", "/function/resting", 503, public=True),
    "maintenance as a page": Way("GET", "/function/resting", 503, headers={"Accept": "text/html"}, public=True),
    "too large, asynchronous": Way("POST", "/async-function/hello", 413, b"x" * 1_048_577, public=True),
    "no credentials": Way("GET", "/v1/functions", 401, token=""),
    "no such route": Way("GET", "/v1/nothing", 404),
    "no such method": Way("PATCH", "/v1/functions", 405),
    "no such thing": Way("GET", "/v1/functions/none", 404),
    "no JSON": Way("PUT", "/v1/functions/hello", 400, b"{"),
    "an unknown key": Way("PUT", "/v1/functions/hello", 400, b'{"x": 1}'),
    "a wrong specification": Way("PUT", "/v1/functions/hello", 400, b'{"spec": {"name": "hello", "memory": 1}}'),
    "no such image": Way("PUT", "/v1/functions/hello", 400, b'{"spec": {"name": "hello"}, "image": "gone:latest"}'),
    "a conflict": Way("POST", "/v1/functions/hello/rollback", 409, b"{}"),
    "gone": Way("POST", "/@connections/none", 410, b"x"),
    "no WebSocket": Way("GET", "/v1/functions/hello/debug", 426),
    "not offered": Way("GET", "/2015-03-31/functions", 501),
    "the event is too large": Way("POST", INVOKE, 413, b"x" * 6_300_000),
    **{f"{how}, by the API": Way("POST", INVOKE, 0, json.dumps({"how": how}).encode()) for how in BY_FUNCTIONS},
    **{f"{how}, public": Way("POST", f"/function/hello/{how}", 0, public=True) for how in BY_FUNCTIONS},
    **{f"{how}, by the API": Way("POST", INVOKE, 0, json.dumps({"how": how}).encode(), in_log=True) for how in BY_US},
    **{f"{how}, public": Way("POST", f"/function/hello/{how}", 0, public=True, in_log=True) for how in BY_US},
    **{f"{how}, public": Way("POST", f"/function/hello/{how}", 0, public=True) for how in REFUSED},
}


def the_id(answered: Answered) -> str:
    found = answered.headers["X-Request-Id"]
    assert ID.fullmatch(found), found
    if answered.headers.get("Content-Type", "").startswith("application/json") and answered.body:
        assert answered.json()["error"]["request_id"] == found
    return found


def logged(caplog: pytest.LogCaptureFixture, request_id: str) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.__dict__.get("request_id") == request_id]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path, FakeWorker(fails)) as running:
        await running.deploy()
        await running.deploy("closed", public=False)
        await running.deploy("resting")
        running.images.gone.add("gone")
        await running.call("PUT", "/v1/maintenance/resting", {"message": "later"})
        yield running


async def test_every_way_to_fail_tells_an_id_and_the_log_has_those_that_are_ours(
    server: Control, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wrong: list[tuple[str, int, Any]] = []
    for name, way in WAYS.items():
        answered = await server.call(
            way.method, way.path, way.body, token=way.token, headers=way.headers, public=way.public
        )
        request_id = the_id(answered)
        if way.status and answered.status != way.status:
            wrong.append((name, answered.status, answered.body[:200]))
        if answered.status < 400 or bool(logged(caplog, request_id)) != way.in_log:
            wrong.append((name, answered.status, "in the log" if not way.in_log else "not in the log"))
    assert wrong == []


async def test_the_api_names_the_command_that_shows_a_failed_invocations_log(server: Control) -> None:
    for how, error in BY_FUNCTIONS.items():
        answered = await server.call("POST", INVOKE, json.dumps({"how": how}).encode())
        hint = answered.json()["error"]["hint"].splitlines()
        assert hint[-1] == f"faas logs hello --request-id {the_id(answered)}"
        assert hint[:-1] == ([error.hint] if error.hint else [])
        stranger = await server.call("POST", f"/function/hello/{how}", public=True)
        assert stranger.json()["error"]["hint"] == ""


@pytest.mark.parametrize("lane", [False, True])
async def test_both_ways_of_the_public_listener_tell_the_id_of_what_they_refuse(
    lane: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", lane)
    worker = FakeWorker(fails)
    path, _ = data_path(worker)
    put(path, revision())
    async with served(application(path)) as port:
        for how in (*BY_FUNCTIONS, *BY_US, *REFUSED):
            sent = (
                f"POST /function/hello HTTP/1.1\r\nHost: a\r\nContent-Length: {len(how)}\r\nConnection: close\r\n\r\n"
            )
            answer = await talk(port, (sent + how).encode())
            head, _, body = answer.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
            assert ID.fullmatch(fields["x-request-id"]), how
            assert json.loads(body)["error"]["request_id"] == fields["x-request-id"]


async def test_a_connection_too_many_and_what_is_not_redirected_have_an_id(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("faas.doors.CONNECTIONS_SHARE", 0.0)
    monkeypatch.setattr("faas.doors.LEAST_CONNECTIONS", 1)
    doors = Doors({"redirect": redirect_app(443)}, None)
    with listen(Address("127.0.0.1", 0)) as listener:
        await doors.open({"redirect": listener})
        port = bound(listener).port
        refused = await talk(port, b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b" 403 " in refused
        assert re.search(rb"X-Request-Id: [0-9a-f-]{36}", refused)
        held, writer = await asyncio.open_connection("127.0.0.1", port)
        full = await talk(port)
        writer.close()
        await doors.refuse()
        await doors.close()
    assert held is not None
    found = re.search(rb"503 .*X-Request-Id: ([0-9a-f-]{36})", full, re.S)
    assert found is not None
    assert "heard 503" in logged(caplog, found[1].decode())[0].getMessage()


async def test_the_registry_says_its_id_in_every_answer_and_in_the_words_of_what_is_its_own_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    database = f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}"
    registry = await Registry.open(tmp_path, database, accounts=None, metrics=Metrics("test"))
    faults: list[Exception] = [
        RuntimeError("a bug"), OSError(5, "I/O error"), Unavailable("a part is away"),
        RegistryError("DENIED", "no room", status=507),
    ]  # fmt: skip

    async def broken(*_: Any) -> Any:
        raise faults[-1]

    try:
        monkeypatch.setattr("registry.app._catalog", broken)
        async with serving(create_app(registry)) as url, ClientSession() as session:
            for method, path, status in (
                ("GET", "/v2/none/manifests/latest", 404),
                ("GET", "/v2/none/blobs/sha256:1", 400),
                ("PATCH", "/v2/", 405),
                ("GET", "/nowhere", 404),
            ):
                async with session.request(method, url + path) as response:
                    assert response.status == status
                    assert ID.fullmatch(response.headers["X-Request-Id"])
            while faults:
                async with session.get(f"{url}/v2/_catalog") as response:
                    request_id, body = response.headers["X-Request-Id"], await response.json()
                assert response.status >= 500
                assert request_id in body["errors"][0]["message"]
                assert logged(caplog, request_id), faults[-1]
                faults.pop()
    finally:
        await registry.close()
