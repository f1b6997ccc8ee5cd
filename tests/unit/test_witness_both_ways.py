"""What is told of a request, whichever way it went: the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from faas.errors import FunctionError
from faas.leases import HttpRequest, HttpResponse, InvocationResult
from faas.protocol import Revision
from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from gateway.edge.witness import Witness
from tests.support.both_ways import both_ways  # noqa: F401 - a fixture
from tests.support.control import until
from tests.support.data_path import application, data_path, put, revision
from tests.support.fake_worker import FakeWorker, stream
from tests.support.raw_http import serving, talk

AGENT = b"User-Agent: test/1\r\nReferer: http://a/b\r\n"
TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


SLEEPS: list[bytes] = []  # events that are slept over


class Recorder(Witness):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = True
        self.told: list[dict[str, Any]] = []

    def saw(self, **what: Any) -> None:
        what |= {"route": str(what["route"].revision.key), "seconds": what["seconds"] >= 0, "entry": None}
        assert len(what.pop("request_id")) == 36
        self.told.append(what)


async def by_event(revision: Revision, event: bytes) -> InvocationResult:
    if b"/raise" in event:
        raise FunctionError("no")
    if b"/sleep" in event:
        SLEEPS.append(event)
        await asyncio.sleep(30)
    return InvocationResult(b'{"some": "thing"}')


async def by_http(revision: Revision, request: HttpRequest) -> HttpResponse:
    if request.target == "/streams":
        return HttpResponse(503, (("Content-Type", "text/plain"),), stream(b"one", b"two"))
    return HttpResponse(201, (("Content-Length", "5"),), stream(b"hello"))


def request(path: str, method: str = "GET", body: bytes = b"", more: bytes = b"") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    head = f"{method} /function/{path} HTTP/1.1\r\nHost: a\r\n".encode()
    return head + AGENT + length + more + b"Connection: close\r\n\r\n" + body


def expected(function: str, path: str, status: int, sent: int, **more: Any) -> dict[str, Any]:
    return {
        "method": "GET", "target": f"/function/{path}", "status": status, "seconds": True, "route": f"{function}@v1",
        "entry": None, "api": "", "caller": "", "address": "127.0.0.1", "agent": "test/1", "referer": "http://a/b",
        "trace": "", "bytes_in": 0, "bytes_out": sent, "cold": False, "listener": "public", "version": "1.1", **more,
    }  # fmt: skip


@pytest.fixture
async def world(both_ways: str) -> Any:  # noqa: F811 - the fixture
    worker = FakeWorker(by_event, by_http)
    path, _ = data_path(worker)
    for made in (revision("hello"), revision("web", interface=Interface.HTTP, concurrency=5)):
        put(path, made)
        await worker.scale(made, 1)
    recorder = Recorder()
    async with serving(application(path, witness=recorder), **RUNNER_OPTIONS) as port:
        yield port, recorder


async def seen(recorder: Recorder, requests: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(5):
        while len(recorder.told) < requests:  # noqa: ASYNC110 - it is told when the answer is over, not before
            await asyncio.sleep(0.01)
    defaults: dict[str, Any] = {"api": "", "caller": "", "cold": False, "listener": "public", "version": "1.1"}
    defaults["trace"] = ""
    told = [defaults | told for told in recorder.told]
    for one in told:  # an event always has a trace
        one["trace"] = "made" if one["trace"].startswith("Root=1-") else one["trace"]
    return told


async def test_answers_of_either_contract_and_errors_are_told(world: tuple[int, Recorder]) -> None:
    port, recorder = world
    await talk(port, request("hello/a?b=c", more=TRACE))
    await talk(port, request("hello", "POST", b"12345"))
    await talk(port, request("hello/raise"))
    await talk(port, request("web"))
    streamed = await talk(port, request("web/streams"))
    assert b"one" in streamed
    told = await seen(recorder, 5)
    error = told[2].pop("bytes_out")
    assert error > 20
    assert told == [
        expected("hello", "hello/a?b=c", 200, 17, trace=TRACE.split()[1].decode()),
        expected("hello", "hello", 200, 17, method="POST", bytes_in=5, trace="made"),
        {k: v for k, v in expected("hello", "hello/raise", 502, 0, trace="made").items() if k != "bytes_out"},
        expected("web", "web", 201, 5),
        expected("web", "web/streams", 503, 6),
    ]


async def test_who_leaves_before_the_answer_is_told_once(world: tuple[int, Recorder]) -> None:
    port, recorder = world
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    SLEEPS.clear()
    writer.write(request("hello/sleep"))
    await until(lambda: SLEEPS)
    writer.close()
    assert await seen(recorder, 1) == [expected("hello", "hello/sleep", 499, 0, trace="made")]
    await asyncio.sleep(0.05)
    assert len(recorder.told) == 1
