"""HTTP's own manners in front of http functions: expectations, early answers, trailers, old clients, long bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession

from faas.leases import HttpRequest, HttpResponse
from faas.protocol import Revision
from tests.support.fake_worker import OnRequest, stream
from tests.support.raw_http import talk
from tests.unit.test_proxy import Served, answering, received

POST = b"POST /function/hello HTTP/1.1\r\nHost: a\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = {"Content-Length": "2"}


def echoing(seen: list[HttpRequest] | None = None) -> OnRequest:
    """Answers with the request's body, whole."""

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        if seen is not None:
            seen.append(request)
        body = await received(request)
        return HttpResponse(200, (("Content-Length", str(len(body))),), stream(body))

    return on_request


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5\r\n", b"Content-Length: 100000\r\n", b"Transfer-Encoding: chunked\r\n"]
)
async def test_100_is_said_when_the_function_reads_and_then_the_body_comes(framing: bytes) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n" if b"chunked" in framing else b"hello".ljust(int(framing.split()[1]), b"!")
    seen: list[HttpRequest] = []
    async with Served(echoing(seen)) as served:
        head = POST + framing + b"Connection: close\r\nExpect: 100-Continue\r\n\r\n"
        answer = await talk(served.port, head, body, pause=0.1)
    assert answer.startswith(CONTINUE + b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\nhello" in answer
    assert "expect" not in dict(seen[0].headers)


@pytest.mark.parametrize("expect", [b"cake", b"100-continue, cake", b"100-continue\r\nExpect: 100-continue", b""])
@pytest.mark.parametrize("framing", [b"Content-Length: 2\r\n", b""])
async def test_what_cannot_be_met_is_a_417_before_anything_runs(expect: bytes, framing: bytes) -> None:
    async with Served(answering(200, OK, b"ok")) as served:
        answer = await talk(served.port, POST + framing + b"Expect: " + expect + b"\r\n\r\n", seconds=0.2)
        assert answer.startswith(b"HTTP/1.1 417 ")
        assert served.worker.invocations == []


async def test_an_answer_without_a_100_before_it_ends_the_connection() -> None:
    """What comes then may be the body that was announced: it must not be read as a request."""
    smuggled = b"GET /function/hello/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    asking = b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(smuggled)
    async with Served(answering(200, OK, b"ok"), public=False) as served:
        answer = await talk(served.port, POST + asking, smuggled, pause=0.1, seconds=3)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in answer
    async with Served(answering(200, OK, b"ok")) as served:  # this one does not read
        answer = await talk(served.port, POST + asking, smuggled, pause=0.1, seconds=3)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in answer
        assert len(served.worker.invocations) == 1


async def test_an_old_client_hears_no_100() -> None:
    async with Served(echoing()) as served:
        head = b"POST /function/hello HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        answer = await talk(served.port, head + b"hello", seconds=3)
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert answer.endswith(b"hello")


@pytest.mark.parametrize("length", [None, "9"])
async def test_an_old_client_gets_an_answer_that_ends_with_the_connection_and_no_chunks(length: str | None) -> None:
    headers = {"Content-Length": length} if length else {}
    async with Served(answering(200, headers, b"one", b"two", b"six")) as served:
        answer = await talk(served.port, b"GET /function/hello HTTP/1.0\r\nHost: a\r\n\r\n", seconds=3)
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in answer
    assert answer.endswith(b"\r\n\r\nonetwosix")


async def test_trailers_are_dropped_both_ways_and_the_connection_goes_on() -> None:
    """A function's own are dropped by the worker (`test_worker_http.py`)."""
    seen: list[HttpRequest] = []
    chunked = POST + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\n\r\n"
    body = b"3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
    async with Served(echoing(seen)) as served:
        answer = await talk(served.port, (chunked + body) * 2, seconds=0.3)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.endswith(b"abc")
    for request in seen:
        fields = dict(request.headers)
        assert {"trailer", "te", "x-sum", "content-length", "transfer-encoding"}.isdisjoint(fields)
        assert "6.6.6.6" not in str(fields)


async def test_hop_by_hop_fields_of_an_answer_stay_between_the_function_and_us() -> None:
    own = {
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "Keep-Alive": "timeout=5",
        "Proxy-Authenticate": "Basic",
        "Trailer": "X-Sum",
        "Transfer-Encoding": "chunked",
        "Upgrade": "h2c",
        "X-Kept": "1",
    }
    async with Served(answering(200, own, b"ok")) as served:
        answer = await talk(served.port, b"GET /function/hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    for name in (b"x-hop", b"keep-alive", b"proxy-authenticate", b"trailer", b"upgrade"):
        assert name not in head
    assert head.count(b"transfer-encoding: chunked") == 1
    assert b"x-kept: 1" in head


async def test_an_answer_may_come_before_the_body_was_read() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"a" * 65_536

    async with Served(answering(413, OK, b"no")) as served, ClientSession() as session:
        with_length = POST + b"Content-Length: 1000000000\r\n\r\n" + b"a" * 1000
        early = await talk(served.port, with_length, seconds=0.3)
        assert early.startswith(b"HTTP/1.1 413")
        assert early.endswith(b"no")
        async with session.post(served.url, data=endless()) as answer:
            assert (answer.status, await answer.read()) == (413, b"no")


@pytest.mark.parametrize("kind", ["text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("compress", [False, True])
async def test_events_go_out_one_by_one_and_the_head_before_the_first(kind: str, compress: bool) -> None:
    go = asyncio.Semaphore(0)

    async def events() -> AsyncIterator[bytes]:
        for n in range(3):
            await go.acquire()
            yield b"data: %d\n\n" % n

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (("Content-Type", kind),), events())

    served = Served(on_request, compress=compress)
    async with served, ClientSession() as session, session.get(served.url) as answer:  # its head is here
        for n in range(3):
            go.release()
            assert await answer.content.readany() == b"data: %d\n\n" % n


async def test_64_mb_go_through_without_being_held() -> None:
    size, piece = 64 * 1_048_576, b"a" * 65_536
    sent = taken = received_bytes = ahead = 0

    async def upload() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < size:
            sent += len(piece)
            yield piece

    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        async def back() -> AsyncIterator[bytes]:
            nonlocal taken
            assert not isinstance(request.body, bytes | None)
            async for chunk in request.body:
                taken += len(chunk)
                yield chunk

        return HttpResponse(200, (("Content-Length", str(size)),), back())

    served = Served(on_request)
    async with served, ClientSession() as session, session.post(served.url, data=upload()) as answer:
        async for chunk in answer.content.iter_any():
            received_bytes += len(chunk)
            ahead = max(ahead, sent - received_bytes)
    assert received_bytes == taken == size
    assert ahead < 24 * 1_048_576  # what the kernel's buffers hold both ways, whatever the size
