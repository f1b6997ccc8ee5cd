"""HTTP functions behind the gateway, on real sockets: streams, back-pressure, disconnects, WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import ClientSession

from faas.errors import FaasError, InstanceExited, TimedOut
from faas.leases import HttpRequest, HttpResponse
from faas.metrics import Metrics
from faas.protocol import (
    Revision,
)
from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from tests.support.both_ways import both_ways as both_ways
from tests.support.data_path import TOKEN, application, data_path, put, revision, sample
from tests.support.fake_worker import FakeWorker, OnRequest, stream
from tests.support.patience import at_rest
from tests.support.raw_http import serving, talk
from tests.support.websocket_client import masked

LARGE = 1_000_000


class Served:
    """An http function on a port."""

    def __init__(self, on_request: OnRequest, **spec: Any) -> None:
        self.worker = FakeWorker(on_request=on_request)
        self.path, self.metrics = data_path(self.worker)
        put(self.path, revision(interface=Interface.HTTP, **spec))
        self._serving = serving(application(self.path), **RUNNER_OPTIONS)
        self.port = 0

    async def __aenter__(self) -> Served:
        self.port = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._serving.__aexit__(None, None, None)
        assert self.worker.stats(revision().key).executing == 0, "a slot was not given back"
        assert self.path.invoker.running == 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/function/hello"

    def counted(self, status: str) -> float:
        labels = {"function": "hello", "qualifier": "live", "trigger": "http", "status": status}
        return sample(self.metrics, "faas_invocations_total", **labels)

    def request(self, head: str, body: bytes = b"") -> bytes:
        return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body


def answering(status: int, headers: dict[str, str], *chunks: bytes) -> OnRequest:
    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(status, tuple(headers.items()), stream(*chunks))

    return on_request


async def received(request: HttpRequest) -> bytes:
    if request.body is None or isinstance(request.body, bytes):
        return request.body or b""
    return b"".join([chunk async for chunk in request.body])


async def test_a_request_goes_through_without_the_connections_own_fields() -> None:
    seen: list[HttpRequest] = []

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(200, (("X-A", "1"), ("X-A", "2"), ("Connection", "X-B"), ("X-B", "1")), stream(b"ok"))

    async with Served(on_request) as served, ClientSession() as session:
        url = f"http://127.0.0.1:{served.port}/function/hello/a%2Fb?x=%20&y"
        headers = {"X-Forwarded-For": "6.6.6.6", "TE": "trailers", "Authorization": "Bearer own"}
        async with session.post(url, data=b"body", headers=headers) as answer:
            assert answer.headers.getall("X-A") == ["1", "2"]
            assert "X-B" not in answer.headers
            request_id = answer.headers["X-Request-Id"]
    request = seen[0]
    fields = dict(request.headers)
    assert (request.method, request.target, request.body, request.content_length) == (
        "POST",
        "/a%2Fb?x=%20&y",
        b"body",
        4,
    )
    assert fields["host"] == f"127.0.0.1:{served.port}"
    assert fields["x-forwarded-for"] == "127.0.0.1"
    assert fields["x-request-id"] == request_id
    assert fields["authorization"] == "Bearer own"
    assert {"connection", "te", "transfer-encoding", "expect"}.isdisjoint(fields)
    assert served.counted("success") == 1


async def test_a_private_functions_caller_does_not_hand_it_his_token() -> None:
    seen: list[HttpRequest] = []

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(200, (), stream())

    async with Served(on_request, public=False) as served, ClientSession() as session:
        url = f"http://127.0.0.1:{served.port}/function/hello"
        async with session.get(url, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            assert answer.status == 200
    assert TOKEN not in str(seen)


async def test_bodies_of_any_size_stream_both_ways() -> None:
    async def echo(revision: Revision, request: HttpRequest) -> HttpResponse:
        assert not isinstance(request.body, bytes | None)
        return HttpResponse(200, (("Content-Type", "x/y"),), request.body)

    async def sent() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"a" * LARGE

    async with Served(echo) as served, ClientSession() as session, session.post(served.url, data=sent()) as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
    assert size == 20 * LARGE


async def test_an_answer_reaches_the_client_piece_by_piece() -> None:
    more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        yield b"second"

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (("Content-Type", "text/event-stream"),), pieces())

    async with Served(on_request) as served, ClientSession() as session, session.get(served.url) as answer:
        assert await answer.content.readany() == b"first"
        more.set()
        assert await answer.content.read() == b"second"


async def test_a_client_that_does_not_read_holds_the_function_back() -> None:
    produced = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += LARGE
            yield b"a" * LARGE

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (), endless())

    async with Served(on_request) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1000)
        writer.write(served.request("GET /function/hello HTTP/1.1\nHost: a"))
        assert await at_rest(lambda: produced) < 30 * LARGE
        writer.close()


async def test_a_client_that_goes_away_ends_the_request_and_is_nobodys_error() -> None:
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def hangs(revision: Revision, request: HttpRequest) -> HttpResponse:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    async with Served(hangs) as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(served.request("GET /function/hello HTTP/1.1\nHost: a"))
        await begun.wait()
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 2)
        await asyncio.sleep(0.01)
        assert (served.counted("success"), served.counted("error")) == (1, 0)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (100, {}, b""),
        (101, {}, b""),
        (999, {}, b""),
        (200, {"X": "a\r\nSet-Cookie: stolen=1"}, b""),
        (200, {"X Y": "a"}, b""),
        (200, {"X": "a" * 70_000}, b""),
        (200, {"Content-Length": "5x"}, b"hello"),
        (200, {"Content-Length": "-5"}, b"hello"),
        (200, {"Content-Length": "3"}, b"hello"),
        (200, {"Content-Length": "9"}, b"hello"),
    ],
)
async def test_an_answer_that_is_none_is_a_502(status: int, headers: dict[str, str], body: bytes) -> None:
    async with Served(answering(status, headers, body)) as served:
        answer = await talk(served.port, served.request("GET /function/hello HTTP/1.1\nHost: a\nConnection: close"))
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"X-Error-Type: Function.InvalidResponse" in answer
        assert b"stolen" not in answer
        assert served.counted("error") == 1


@pytest.mark.parametrize("error", [TimedOut(), InstanceExited()])
async def test_an_error_after_the_head_cuts_the_connection(error: FaasError) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"some"
        raise error

    for version, headers in (("1.1", ()), ("1.1", (("Content-Length", "99999"),)), ("1.0", ())):

        async def on_request(revision: Revision, request: HttpRequest, headers: Any = headers) -> HttpResponse:
            return HttpResponse(200, headers, breaks())

        async with Served(on_request) as served:
            began = asyncio.get_running_loop().time()
            answer = await talk(served.port, served.request(f"GET /function/hello HTTP/{version}\nHost: a"), seconds=10)
            assert asyncio.get_running_loop().time() - began < 9, "the connection stayed open"
            assert b"0\r\n\r\n" not in answer.partition(b"\r\n\r\n")[2]
            assert answer.count(b"HTTP/1.") <= 1
            assert served.counted("error") == 1


async def test_an_error_before_the_head_is_an_answer() -> None:
    async def fails(revision: Revision, request: HttpRequest) -> HttpResponse:
        raise InstanceExited("RequestId: r Error: Runtime exited with error: exit status 3")

    async with Served(fails) as served:
        answer = await talk(served.port, served.request("GET /function/hello HTTP/1.1\nHost: a\nConnection: close"))
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"X-Error-Type: Runtime.ExitError" in answer


async def test_a_functions_own_500_passes_and_counts_as_handled() -> None:
    async with Served(answering(500, {"Content-Length": "4"}, b"oops")) as served:
        answer = await talk(served.port, served.request("GET /function/hello HTTP/1.1\nHost: a\nConnection: close"))
        assert answer.startswith(b"HTTP/1.1 500")
        assert answer.endswith(b"oops")
        assert served.counted("error") == 1


@pytest.mark.parametrize(
    ("method", "status", "length"), [("HEAD", 200, b"5"), ("GET", 204, None), ("GET", 304, None), ("HEAD", 304, b"5")]
)
async def test_answers_without_a_body_stay_without(method: str, status: int, length: bytes | None) -> None:
    async with Served(answering(status, {"Content-Length": "5"})) as served:
        request = served.request(f"{method} /function/hello HTTP/1.1\nHost: a")
        answer = await talk(served.port, request + request, seconds=0.3)
        assert answer.count(f"HTTP/1.1 {status}".encode()) == 2, "the connection is kept"
        assert answer.endswith(b"\r\n\r\n")
        assert (b"Content-Length: 5\r\n" in answer) is (length is not None and status != 304)


async def test_text_outside_ascii_arrives_as_the_same_bytes() -> None:
    seen: list[HttpRequest] = []

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(200, (("X-Name", "grüezi".encode().decode("latin-1")), ("Content-Length", "0")), stream())

    async with Served(on_request) as served:
        request = b"GET /function/hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-In: " + "ö".encode() + b"\r\n\r\n"
        answer = await talk(served.port, request)
        assert b"X-Name: " + "grüezi".encode() in answer
        assert dict(seen[0].headers)["x-in"].encode("latin-1") == "ö".encode()


async def test_the_status_text_is_ours() -> None:
    async with Served(answering(299, {"Content-Length": "0"})) as served:
        answer = await talk(served.port, served.request("GET /function/hello HTTP/1.1\nHost: a\nConnection: close"))
        assert answer.startswith(b"HTTP/1.1 299 \r\n")


class EchoTunnel:
    """Answers every piece in upper case; `bye` ends it."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.closed = False

    async def read(self) -> bytes:
        return await self.pieces.get()

    async def write(self, data: bytes) -> None:
        await self.pieces.put(b"" if data == b"bye" else data.upper())

    async def close(self) -> None:
        self.closed = True


WEBSOCKET = (
    "GET /function/hello/ws HTTP/1.1\nHost: a\nConnection: keep-alive, Upgrade\nUpgrade: WebSocket\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13"
)


@pytest.mark.parametrize("who_ends", ["client", "function"])
async def test_an_upgraded_connection_carries_bytes_both_ways_until_either_ends(who_ends: str) -> None:
    tunnel = EchoTunnel()
    seen: list[HttpRequest] = []

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(101, (("Sec-WebSocket-Accept", "abc"), ("Upgrade", "websocket")), stream(), tunnel)

    async with Served(on_request) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(served.request(WEBSOCKET, b"early"))  # bytes right behind the request
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Upgrade: websocket\r\n" in head
        assert b"Sec-WebSocket-Accept: abc\r\n" in head
        assert b"X-Request-Id: " in head
        assert await reader.readexactly(5) == b"EARLY"
        for n in range(3):
            writer.write(b"piece %d" % n)
            assert await reader.readexactly(7) == b"PIECE %d" % n
        if who_ends == "client":
            writer.close()
        else:
            writer.write(b"bye")
            assert await reader.read() == b""
            writer.close()
        for _ in range(100):
            if tunnel.closed and not served.path.invoker.running:
                break
            await asyncio.sleep(0.01)
        assert tunnel.closed
        assert seen[0].upgrade == "websocket"
        assert "sec-websocket-key" in dict(seen[0].headers)
        assert "connection" not in dict(seen[0].headers)


async def test_an_upgrade_that_the_function_refuses_is_its_answer_and_the_end_of_the_connection() -> None:
    async with Served(answering(426, {"Content-Length": "2"}, b"no")) as served:
        second = served.request("GET /function/hello HTTP/1.1\nHost: a")
        answer = await talk(served.port, served.request(WEBSOCKET) + second, seconds=3)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.startswith(b"HTTP/1.1 426")
        assert answer.endswith(b"no")


async def test_metrics_of_streams_count_from_the_first_to_the_last_byte() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(0.05)
        yield b"b"

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (), slow())

    async with Served(on_request) as served, ClientSession() as session:
        async with session.get(served.url) as answer:
            await answer.read()
        metrics: Metrics = served.metrics
        await asyncio.sleep(0.01)
        assert sample(metrics, "faas_duration_seconds_count", function="hello") == 1


async def test_a_refused_upgrade_with_a_streamed_answer_says_that_the_connection_ends() -> None:
    async with Served(answering(400, {}, b"no")) as served:
        answer = await talk(served.port, served.request(WEBSOCKET), seconds=3)
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"no\r\n0\r\n\r\n")


class BusyTunnel(EchoTunnel):
    """A function that takes one piece and then nothing."""

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(60)


async def test_a_function_that_does_not_read_its_websocket_holds_the_client_back_and_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(101, (), stream(), BusyTunnel())

    monkeypatch.setattr("gateway.tunnel.PROGRESS_SECONDS", 0.5)
    async with Served(on_request) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(served.request(WEBSOCKET))
        await reader.readuntil(b"\r\n\r\n")
        sent = 0
        try:
            async with asyncio.timeout(0.3):
                while sent < 60 * LARGE:
                    writer.write(b"a" * LARGE)
                    await writer.drain()
                    sent += LARGE
        except TimeoutError:
            pass
        assert sent < 30 * LARGE
        writer.transport.abort()  # unseen by a server that does not read
        for _ in range(200):
            if not served.path.invoker.running:
                break
            await asyncio.sleep(0.01)


async def opened(served: Served, *fields: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """An upgraded connection, or what was answered instead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(served.request("\n".join((WEBSOCKET, *fields))))
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def tunnelled(revision: Revision, request: HttpRequest) -> HttpResponse:
    return HttpResponse(101, (), stream(), EchoTunnel())


@pytest.mark.parametrize("limit", ["idle", "lifetime"])
async def test_an_upgraded_connection_ends_when_nothing_came_for_long_or_it_lasted_long(limit: str) -> None:
    async with Served(tunnelled, websocket={limit: "1s"}) as served:
        clock = asyncio.get_running_loop().time
        last = clock()  # before the server's own clock begins
        reader, writer, _ = await opened(served)

        def connected() -> float:
            return sample(served.metrics, "faas_websocket_connections", function="hello")

        pieces = 0
        with suppress(ConnectionResetError):  # a piece came as it ended
            while pieces < 3 or limit == "lifetime":
                sent = clock()
                writer.write(b"piece")
                if await reader.read(5) == b"":
                    break
                assert pieces or connected() == 1
                pieces += 1
                if limit == "idle":
                    last = sent
                await asyncio.sleep(0.1)
            async with asyncio.timeout(30):
                assert await reader.read() == b""
        assert clock() - last >= 1, "it ended before its time"
        writer.close()
        for _ in range(100):
            if not connected() and not served.path.invoker.running:
                break
            await asyncio.sleep(0.01)
        assert connected() == 0


async def test_a_message_to_an_http_function_is_as_large_as_its_rules_allow() -> None:
    async with Served(tunnelled, websocket={"max_message": 1000}) as served:
        reader, writer, _ = await opened(served)
        fine = masked(2, b"\x00" * 1000, mask=b"\x00" * 4)
        writer.write(fine)
        assert await reader.readexactly(len(fine)) == fine.upper()
        writer.write(masked(2, b"a" * 600, fin=False) + masked(0, b"a" * 401))
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_page_of_another_origin_reaches_no_http_function_by_websocket() -> None:
    seen: list[HttpRequest] = []

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return await tunnelled(revision, request)

    async with Served(on_request, websocket={"origins": ["https://mine.example"]}) as served:
        for origin, status in (
            ("Origin: https://mine.example", b"101"),
            ("X-Nothing: 1", b"101"),
            ("Origin: https://evil.example", b"403"),
            ("Origin: https://mine.example\nOrigin: https://evil.example", b"403"),
        ):
            _, writer, head = await opened(served, origin)
            assert head.startswith(b"HTTP/1.1 " + status), origin
            assert b"evil" not in head
            writer.close()
        assert len(seen) == 2
        async with ClientSession() as session, session.get(served.url, headers={"Origin": "https://evil.example"}):
            assert len(seen) == 3  # a plain request is CORS's matter
