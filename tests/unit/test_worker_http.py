"""Http functions: streaming both ways, keep-alive, time limits, upgrades, and servers that do not speak HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from faas.errors import BadFunctionResponse, InitFailed, InstanceExited, InvalidInput, RequestTimeout, TimedOut
from faas.leases import HttpRequest, HttpResponse, Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    LogQuery,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, FakeSandbox, eventually
from tests.support.patience import at_rest
from worker import output
from worker.http import encode_head
from worker.http_reader import HIGH_BYTES
from worker.pool import Pool

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class World:
    """A pool with one http function, `handle`."""

    def __init__(self, folder: Path, handle: Handle, **keys: Any) -> None:
        async def serve(sandbox: FakeSandbox) -> None:
            self.sandbox = sandbox
            await sandbox.serve(handle)
            await asyncio.Event().wait()

        self.driver = FakeDriver({"web": serve})
        self.pool = Pool(self.driver, folder / "logs", Metrics("test"))
        spec = parse({"name": "web", "entrypoint": ["web"], **keys})
        key = RevisionKey("default", "web", 1)
        self.revision = Revision(key, spec, "web@sha256:" + "0" * 64, Interface.HTTP)

    async def __aenter__(self) -> World:
        await self.pool.open()
        await self.pool.scale(self.revision, 1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close(0)
        assert self.driver.sandboxes == {}

    @contextlib.asynccontextmanager
    async def request(
        self, method: str = "GET", target: str = "/", body: Any = None, **more: Any
    ) -> AsyncIterator[HttpResponse]:
        request = HttpRequest(method, target, (("Host", "web"),), body, **more)
        async with self.pool.acquire(self.revision, Invocation("r1", Trigger.HTTP, 5)) as lease:
            response = await lease.request(request)
            try:
                yield response
            finally:
                await response.body.aclose()  # type: ignore[attr-defined]

    async def get(self, *args: Any, **more: Any) -> tuple[int, bytes]:
        async with self.request(*args, **more) as response:
            return response.status, b"".join([chunk async for chunk in response.body])

    @property
    def instances(self) -> int:
        return len(self.driver.created)


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(answer: bytes, *, close: bool = False, seen: list[bytes] | None = None) -> Handle:
    """Reads heads of requests without a body and writes `answer` to each."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await head_of(reader)
            if seen is not None:
                seen.append(head)
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return handle


async def test_requests_go_over_one_kept_connection(tmp_path: Path) -> None:
    connections, seen = [], []
    handle = answering(OK, seen=seen)

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await handle(reader, writer)

    async with World(tmp_path, counted) as world:
        for n in range(5):
            assert await world.get("GET", f"/{n}?q=1") == (200, b"ok")
        assert len(connections) == 1  # the one that readiness opened
    assert seen[3] == b"GET /3?q=1 HTTP/1.1\r\nHost: web\r\n\r\n"


async def test_bodies_stream_both_ways_without_being_held(tmp_path: Path) -> None:
    """50 MB through a function that echoes: neither side may buffer it."""
    size, most_buffered = 50 * 1_048_576, 0

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while (length := int(await reader.readline(), 16)) > 0:
            data = await reader.readexactly(length)
            await reader.readexactly(2)
            writer.write(b"%x\r\n%b\r\n" % (length, data))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(size // 65_536):
            yield b"x" * 65_536

    async with World(tmp_path, echo) as world, world.request("POST", body=upload()) as response:
        received = 0
        reader = response.body._exchange.reader  # type: ignore[attr-defined]
        async for chunk in response.body:
            received += len(chunk)
            most_buffered = max(most_buffered, reader.buffered)
    assert received == size
    assert most_buffered <= 2 * HIGH_BYTES


async def test_a_reader_that_stops_stops_the_function(tmp_path: Path) -> None:
    written = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            written += 65_536
            await writer.drain()

    async with World(tmp_path, endless) as world:
        async with world.request() as response:
            await anext(response.body)
            await at_rest(lambda: written)
        await eventually(lambda: world.pool.stats(world.revision.key).idle == 1)
        assert world.instances == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n", b"abc"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 Smuggled\r\nContent-Length: 0\r\n\r\n", b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more", b"ok"),
    ],
)
async def test_every_framing_is_understood_and_nothing_beyond_it_is_taken(
    tmp_path: Path, answer: bytes, body: bytes
) -> None:
    async with World(tmp_path, answering(answer)) as world:
        for _ in range(3):
            assert (await world.get())[1] == body


async def test_an_answer_may_end_with_its_connection(tmp_path: Path) -> None:
    async with World(tmp_path, answering(b"HTTP/1.0 200 OK\r\n\r\nuntil the end", close=True)) as world:
        for _ in range(2):
            assert await world.get() == (200, b"until the end")


async def test_head_has_no_body_whatever_its_length_says(tmp_path: Path) -> None:
    async with World(tmp_path, answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")) as world:
        for _ in range(2):
            assert await world.get("HEAD") == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"hello\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 700 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"Set-Cookie: a=b\r\n" * 500 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    ],
    ids=range(16),
)
async def test_what_is_no_response_is_said_so_and_the_next_request_works(tmp_path: Path, answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await head_of(reader)
            writer.write(OK if b"/good" in head else answer)
            await writer.drain()

    async with World(tmp_path, handle) as world:
        with pytest.raises(BadFunctionResponse, match="the function "):
            await world.get("GET", "/bad")
        assert await world.get("GET", "/good") == (200, b"ok")
        assert world.instances == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"x" * 1_000_000,
    ],
    ids=["short", "no last chunk", "endless chunk head"],
)
async def test_a_body_that_breaks_off_is_no_body(tmp_path: Path, answer: bytes) -> None:
    async with World(tmp_path, answering(answer, close=True)) as world:
        with pytest.raises(BadFunctionResponse):
            await world.get()


async def test_a_stale_connection_is_replaced_where_the_request_can_be_sent_again(tmp_path: Path) -> None:
    served = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request, takes a second one and closes without a word."""
        nonlocal served
        await head_of(reader)
        served += 1
        writer.write(OK)
        await head_of(reader)

    async with World(tmp_path, once) as world:
        for _ in range(4):
            assert await world.get() == (200, b"ok")

        async def body() -> AsyncIterator[bytes]:
            yield b"x"

        with pytest.raises(BadFunctionResponse, match="closed the connection without an answer"):
            await world.get("POST", body=body())
    assert served == 4


async def test_a_fresh_connection_that_closes_is_not_tried_again(tmp_path: Path) -> None:
    tries = 0

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        await head_of(reader)
        tries += 1

    async with World(tmp_path, never) as world:
        with pytest.raises(BadFunctionResponse):
            await world.get("POST", body=b"charge the card")
    assert tries == 1


async def test_the_time_limit_covers_the_whole_answer(tmp_path: Path) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if b"/fine" in head:
            writer.write(OK)
            return
        if b"/body" in head:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await asyncio.sleep(60)

    async with World(tmp_path, slow, timeout=1) as world:
        with pytest.raises(TimedOut, match=r"Task timed out after 1\.00 seconds"):
            await world.get("GET", "/head")
        async with world.request("GET", "/body") as response:
            assert await anext(response.body) == b"begun"
            with pytest.raises(TimedOut):
                await anext(response.body)
        assert await world.get("GET", "/fine") == (200, b"ok")
        assert world.instances == 3


async def test_one_late_request_of_several_does_not_kill_the_others(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if b"/late" in head:
            await asyncio.sleep(60)
        await gate.wait()
        writer.write(OK)

    async with World(tmp_path, handle, timeout=4, concurrency=2) as world:
        late = asyncio.create_task(world.get("GET", "/late"))
        await asyncio.sleep(3.5)  # so far apart their ends are, though the machine may stand still
        other = asyncio.create_task(world.get("GET", "/other"))
        with pytest.raises(TimedOut):
            await late
        gate.set()
        assert await other == (200, b"ok")
        await eventually(lambda: world.driver.created[0].id not in world.driver.sandboxes)


async def test_a_tunnel_does_not_keep_an_instance_alive_in_which_a_request_was_late(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/tunnel" in await head_of(reader):
            writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.read()

    async with World(tmp_path, handle, timeout=1, concurrency=2) as world:
        async with world.request("GET", "/tunnel", upgrade="websocket") as response:
            assert response.tunnel is not None
            with pytest.raises(TimedOut):
                await world.get("GET", "/late")
            late = asyncio.get_running_loop().time()
            async with asyncio.timeout(30):
                assert await response.tunnel.read() == b""
            assert asyncio.get_running_loop().time() - late > 0.5  # the others had their chance
            await eventually(lambda: world.driver.created[0].id not in world.driver.sandboxes)
        assert world.pool.stats(world.revision.key).executing == 0


async def test_what_may_be_logged_starts_anew_with_each_request_also_where_several_share_an_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "INVOCATION_BYTES", 200_000)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            for _ in range(5):
                world.sandbox.print(head.split()[1].decode() + "x" * 30_000)
            await asyncio.sleep(0.01)
            writer.write(OK)

    async with World(tmp_path, handle, concurrency=2) as world:

        async def of(number: int) -> int:
            records = [record async for record in world.pool.logs(LogQuery("default", "web"))]
            return sum(record.message.startswith(f"/{number}x") for record in records)

        for number in range(5):
            await world.get("GET", f"/{number}")
            while await of(number) < 5:  # noqa: ASYNC110 - the rest of it would count for the next one
                await asyncio.sleep(0.01)


async def test_a_line_that_one_request_is_writing_is_not_cut_by_the_end_of_another(tmp_path: Path) -> None:
    begun, enough = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            if b"/slow" in head:
                world.sandbox.stdout.feed_data(b"begun and ")
                begun.set()
                await enough.wait()
                world.sandbox.stdout.feed_data(b"ended\n")
            elif b"/last" in head:
                world.sandbox.stdout.feed_data(b"without an end")
            writer.write(OK)

    async with World(tmp_path, handle, concurrency=2) as world:
        slow = asyncio.create_task(world.get("GET", "/slow"))
        await begun.wait()
        await world.get("GET", "/quick")
        await asyncio.sleep(0.05)
        enough.set()
        await slow
        await world.get("GET", "/last")
        await asyncio.sleep(0.05)
        records = [record async for record in world.pool.logs(LogQuery("default", "web"))]
    lines = [record.message for record in records if record.stream == "stdout"]
    assert lines == ["begun and ended", "without an end"]


async def test_a_cancellation_that_comes_while_an_upload_is_called_off_is_not_lost(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK)
        await reader.read()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            leaving.set()
            await asyncio.sleep(0.05)  # a caller's stream that does not let go at once

    leaving = asyncio.Event()
    async with World(tmp_path, handle) as world:
        call = asyncio.create_task(world.get("POST", body=endless()))
        await leaving.wait()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        await eventually(lambda: world.pool.stats(world.revision.key).idle == 1)


async def test_an_instance_that_ends_in_a_request_is_said_so(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        asyncio.get_running_loop().call_soon(world.sandbox.task.cancel)  # type: ignore[union-attr]
        await asyncio.sleep(60)

    async with World(tmp_path, handle) as world:
        with pytest.raises(InstanceExited, match="signal: killed"):
            await world.get()


async def test_a_caller_that_goes_before_the_head_leaves_the_slot_busy_until_the_answer(tmp_path: Path) -> None:
    gate, began = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head_of(reader)
            began.set()
            await gate.wait()
            writer.write(OK)

    async with World(tmp_path, handle) as world:
        call = asyncio.create_task(world.get())
        await began.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert world.pool.stats(world.revision.key).busy == 1
        gate.set()
        await eventually(lambda: world.pool.stats(world.revision.key).idle == 1)
        assert await world.get() == (200, b"ok")
        assert world.instances == 1


async def test_a_broken_upload_ends_the_request_with_the_callers_own_error(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        if b"Content-Length: 5" in head:
            await reader.readexactly(5)
        writer.write(OK)

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionResetError("the client has gone")

    async def long() -> AsyncIterator[bytes]:
        yield b"123456"

    async with World(tmp_path, handle) as world:
        with pytest.raises(ConnectionResetError):
            await world.get("POST", body=broken(), content_length=5)
        with pytest.raises(InvalidInput, match="more bytes than its Content-Length"):
            await world.get("POST", body=long(), content_length=5)
        assert world.instances == 1


async def test_a_body_that_its_caller_does_not_send_is_no_fault_of_the_instance(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            if b"POST" in await head_of(reader):
                await reader.readexactly(5)
            writer.write(OK)

    async def dribbled() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.4)

    async with World(tmp_path, handle, timeout=1) as world:
        with pytest.raises(RequestTimeout):
            await world.get("POST", body=dribbled(), content_length=5)
        assert await world.get() == (200, b"ok")
        assert world.instances == 1


async def test_an_upgraded_connection_carries_bytes_both_ways_beyond_the_time_limit(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await head_of(reader)
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
        while data := await reader.read(100):
            writer.write(data.upper())

    async with World(tmp_path, handle, timeout=1) as world:
        async with world.request(upgrade="websocket") as response:
            tunnel = response.tunnel
            assert response.status == 101
            assert tunnel is not None
            assert await tunnel.read() == b"first"
            await asyncio.sleep(1.1)
            await tunnel.write(b"abc")
            assert await tunnel.read() == b"ABC"
            await tunnel.close()
        assert world.instances == 1


async def test_health_is_asked_until_it_is_well(tmp_path: Path) -> None:
    asked = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            head = await head_of(reader)
            asked += b"GET /healthz " in head
            writer.write(OK if asked >= 3 else b"HTTP/1.1 503 Not yet\r\nContent-Length: 0\r\n\r\n")

    async with World(tmp_path, handle, health="/healthz") as world:
        assert await world.get() == (200, b"ok")
    assert asked == 3


async def test_a_health_that_never_comes_is_an_init_that_failed(tmp_path: Path) -> None:
    ill = answering(b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n")
    async with World(tmp_path, ill, health="/healthz", init_timeout=1) as world:
        with pytest.raises(InitFailed, match="/healthz"):
            await world.get()


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET / HTTP/1.1\r\nX: y", "/", ()),
        ("GET", "/ HTTP/1.1\r\nX: y", ()),
        ("GET", "/", (("X", "a\r\nY: b"),)),
        ("GET", "/", (("X: y\r\nZ", "a"),)),
        ("GET", "/", (("X", "a\x00"),)),
    ],
)
def test_nothing_breaks_out_of_a_request_head(method: str, target: str, headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(InvalidInput):
        encode_head(HttpRequest(method, target, headers))


def test_framing_is_ours_whatever_the_callers_headers_say() -> None:
    headers = (("Content-Length", "99"), ("transfer-encoding", "gzip"), ("Connection", "close"), ("X", "\xe9"))
    head = encode_head(HttpRequest("POST", "/", headers, b"abc", 3))
    assert head == b"POST / HTTP/1.1\r\nX: \xe9\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
    assert b"Content-Length: 0" in encode_head(HttpRequest("PUT", "/", ()))
    assert b"Content-Length" not in encode_head(HttpRequest("GET", "/", ()))
