"""Lambda-style functions that stream their answers: preludes, pieces, back-pressure, and ends that come too soon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from faas.errors import FaasError, InstanceExited, OutOfMemory, TimedOut
from faas.leases import InvocationResult, StreamedResult
from faas.protocol import Revision
from faas.web import RUNNER_OPTIONS
from gateway.event import PRELUDE_BYTES, STREAMED, http_answer
from gateway.invoke import SYNC_PAYLOAD_BYTES
from tests.support.both_ways import both_ways as both_ways
from tests.support.data_path import application, data_path, put, revision, sample
from tests.support.fake_driver import eventually
from tests.support.fake_worker import FakeWorker, stream
from tests.support.patience import at_rest
from tests.support.raw_http import serving, talk

GET = b"GET /function/hello HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = 1_000_000


def prelude(**value: Any) -> bytes:
    return json.dumps(value).encode()


class Streaming:
    """A function that streams `body`, on a port."""

    def __init__(
        self, body: AsyncIterator[bytes], head: bytes | None = None, kind: str = STREAMED, **spec: Any
    ) -> None:
        async def on_stream(revision: Revision, event: bytes) -> StreamedResult:
            self.events.append(json.loads(event))
            return StreamedResult(body, head, kind)

        self.events: list[dict[str, Any]] = []
        self.worker = FakeWorker()
        self.worker.on_stream = on_stream
        self.path, self.metrics = data_path(self.worker)
        put(self.path, revision(**spec))
        self._serving = serving(application(self.path), **RUNNER_OPTIONS)
        self.port = 0

    async def __aenter__(self) -> Streaming:
        self.port = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._serving.__aexit__(None, None, None)
        await eventually(lambda: self.path.invoker.running == 0)
        assert self.worker.stats(revision().key).executing == 0, "a slot was not given back"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/function/hello"

    def counted(self) -> tuple[float, float]:
        """(successes, errors)."""
        labels = {"function": "hello", "qualifier": "live", "trigger": "http"}
        success, error = (
            sample(self.metrics, "faas_invocations_total", **labels, status=status) for status in ("success", "error")
        )
        return success, error


async def test_a_streamed_answer_has_its_preludes_head_and_comes_piece_by_piece() -> None:
    more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        yield b""
        yield b"second"

    head = prelude(statusCode=201, headers={"X-A": "1", "Content-Type": "text/html"}, cookies=["a=1", "b=2"])
    async with Streaming(pieces(), head) as served, ClientSession() as session, session.get(served.url) as answer:
        assert (answer.status, answer.headers["X-A"], answer.headers["Content-Type"]) == (201, "1", "text/html")
        assert answer.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert answer.headers["X-Request-Id"] == served.events[0]["requestContext"]["requestId"]
        assert await answer.content.readany() == b"first"
        assert served.counted() == (0, 0)
        more.set()
        assert await answer.content.read() == b"second"
        await eventually(lambda: served.counted() == (1, 0))


async def test_an_answer_without_a_prelude_is_a_200_of_its_type() -> None:
    async with Streaming(stream(b"\x00\xff"), None, "image/png") as served:
        answer = await talk(served.port, GET, seconds=0.2)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n")
    assert answer.endswith(b"\r\n\r\n2\r\n\x00\xff\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{",
        b"[]",
        b'"200"',
        b"\xff",
        b"[" * 50_000,
        prelude(statusCode=101),
        prelude(statusCode="x"),
        prelude(headers={"X": "a\r\nSet-Cookie: stolen=1"}),
        prelude(headers=["X"]),
        prelude(cookies="a=1"),
        prelude(cookies=["a=1"] * 500),
        prelude(headers={"X": "a" * PRELUDE_BYTES}),
    ],
)
async def test_a_prelude_that_is_none_is_a_502_and_the_functions_error(head: bytes) -> None:
    async with Streaming(stream(b"body"), head) as served:
        answer = await talk(served.port, GET, seconds=0.2)
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"X-Error-Type: Function.InvalidResponse" in answer
        assert b"stolen" not in answer
        await eventually(lambda: served.counted() == (0, 1))


async def test_a_streamed_type_without_an_end_of_its_prelude_is_a_502() -> None:
    async with Streaming(stream(b'{"statusCode": 200'), None) as served:
        assert (await talk(served.port, GET, seconds=0.2)).startswith(b"HTTP/1.1 502")


@pytest.mark.parametrize("error", [TimedOut(), InstanceExited(), OutOfMemory()])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_function_that_breaks_off_cuts_the_connection_and_never_ends_well(
    error: FaasError, version: str
) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"some"
        raise error

    async with Streaming(breaks(), prelude(statusCode=200)) as served:
        answer = await talk(served.port, GET.replace(b"1.1", version.encode()), seconds=3)
        assert answer.count(b"HTTP/1.") <= 1
        assert b"0\r\n\r\n" not in answer.partition(b"\r\n\r\n")[2]
        await eventually(lambda: served.counted() == (0, 1))


async def test_an_error_before_the_answer_is_a_502() -> None:
    async def fails(revision: Revision, event: bytes) -> StreamedResult:
        raise InstanceExited("RequestId: r Error: Runtime exited with error: exit status 3")

    async with Streaming(stream()) as served:
        served.worker.on_stream = fails
        answer = await talk(served.port, GET, seconds=0.2)
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"X-Error-Type: Runtime.ExitError" in answer
        assert served.counted() == (0, 1)


async def test_a_client_that_does_not_read_holds_the_function_back() -> None:
    produced = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal produced
        while produced < 200 * LARGE:
            produced += LARGE
            yield b"a" * LARGE

    async with Streaming(endless(), prelude()) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1000)
        writer.write(GET)
        assert await at_rest(lambda: produced) < 30 * LARGE
        writer.transport.abort()
        await eventually(lambda: produced == 200 * LARGE)  # without its client it runs to its end, and nothing is kept


@pytest.mark.parametrize("begun", [False, True])
async def test_a_function_whose_client_leaves_runs_to_its_end_and_is_nobodys_error(begun: bool) -> None:
    left, ended, started = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        for n in range(100):
            yield b"%d" % n
            await asyncio.sleep(0)
        await left.wait()
        yield b"more"
        ended.set()

    async def later(revision: Revision, event: bytes) -> StreamedResult:
        started.set()
        if not begun:
            await left.wait()
        return StreamedResult(pieces(), prelude())

    async with Streaming(stream()) as served:
        served.worker.on_stream = later
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GET)
        await started.wait()
        if begun:
            await reader.readuntil(b"99\r\n")
        writer.transport.abort()
        await asyncio.sleep(0.05)
        assert served.path.invoker.running == 1
        left.set()
        async with asyncio.timeout(3):
            await ended.wait()
        await eventually(lambda: served.counted() == (1, 0))


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_a_body_stay_without_and_keep_the_connection(method: str, status: int) -> None:
    bodies = [stream(b"never", b"seen"), stream(b"never", b"seen")]

    async def on_stream(revision: Revision, event: bytes) -> StreamedResult:
        return StreamedResult(bodies.pop(), prelude(statusCode=status))

    async with Streaming(stream()) as served:
        served.worker.on_stream = on_stream
        answer = await talk(served.port, GET.replace(b"GET", method.encode()) * 2, seconds=0.3)
    assert answer.count(b"HTTP/1.1 %d" % status) == 2
    assert b"never" not in answer


async def test_64_mb_stream_without_being_held() -> None:
    size, produced, received, ahead = 64 * 1_048_576, 0, 0, 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal produced
        piece = b"a" * 65_536
        while produced < size:
            produced += len(piece)
            yield piece

    async with Streaming(large(), prelude()) as served, ClientSession() as session, session.get(served.url) as answer:
        async for chunk in answer.content.iter_any():
            received += len(chunk)
            ahead = max(ahead, produced - received)
    assert received == size
    assert ahead < 16 * 1_048_576  # what both kernels and both processes' buffers hold, whatever the size


async def test_a_stop_waits_for_a_stream_and_cuts_what_does_not_end() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"tick"
            await asyncio.sleep(0.01)

    async with Streaming(endless(), prelude()) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GET)
        await reader.readuntil(b"tick")
        await served.path.invoker.close(0.05)
        rest = await reader.read()
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()


def test_a_collected_answer_is_read_by_its_prelude() -> None:
    payload = prelude(statusCode=202, headers={"X-A": "1"}) + b"\0" * 8 + b"body\0\0\0\0\0\0\0\0more"
    status, headers, body = http_answer(payload, STREAMED)
    assert (status, headers["X-A"], body) == (202, "1", b"body\0\0\0\0\0\0\0\0more")


@pytest.mark.parametrize("payload_format", ["2.0", "1.0"])
@pytest.mark.parametrize(
    ("size", "status"), [(SYNC_PAYLOAD_BYTES - 1, 200), (SYNC_PAYLOAD_BYTES, 200), (SYNC_PAYLOAD_BYTES + 1, 502)]
)
async def test_six_megabytes_are_exact_and_unchanged(payload_format: str, size: int, status: int) -> None:
    frame = b'{"statusCode": 200, "body": "%b"}'
    payload = frame % (b"a" * (size - len(frame) + 2))

    async def large(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(payload)

    path, _ = data_path(FakeWorker(large))
    put(path, revision(payload=payload_format))
    async with serving(application(path), **RUNNER_OPTIONS) as port:
        answer = await talk(port, GET, seconds=0.5)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    if status == 200:
        assert answer.endswith(b"\r\n\r\n" + b"a" * (size - len(frame) + 2))
    else:
        assert b"X-Error-Type: Function.ResponseSizeTooLarge" in answer


@pytest.mark.parametrize(
    ("payload", "status"), [(b"NaN", 502), (b"", 502), (b"\xff\xd8", 502), (b'{"statusCode": 200, "body": "ok"}', 200)]
)
async def test_a_function_of_format_1_is_given_that_event_and_read_by_it(payload: bytes, status: int) -> None:
    seen: list[dict[str, Any]] = []

    async def answers(revision: Revision, event: bytes) -> InvocationResult:
        seen.append(json.loads(event))
        return InvocationResult(payload)

    path, _ = data_path(FakeWorker(answers))
    put(path, revision(payload="1.0"))
    async with serving(application(path), **RUNNER_OPTIONS) as port:
        answer = await talk(port, GET, seconds=0.2)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert seen[0]["version"] == "1.0"
    assert seen[0]["httpMethod"] == "GET"
