"""The lane beside aiohttp's way: the same bytes get the same answers, and functions see the same requests."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from faas.errors import BadFunctionResponse, FunctionError, InstanceExited, OutOfMemory, TimedOut
from faas.leases import HttpRequest, HttpResponse, InvocationResult
from faas.protocol import Revision
from gateway.lane import head
from tests.support.fake_worker import stream
from tests.support.two_ways import comparable, two_ways

END = b"\r\n\r\n"


def asking(target: bytes, *fields: bytes, method: bytes = b"GET", version: bytes = b"1.1", body: bytes = b"") -> bytes:
    length = [b"Content-Length: %d" % len(body)] if body else []
    lines = [b"%b %b HTTP/%b" % (method, target, version), b"Host: a", *fields, *length, b"Connection: close"]
    return b"\r\n".join(lines) + END + body


async def told(revision: Revision, request: HttpRequest) -> HttpResponse:
    """What the function was sent."""
    body = request.body if isinstance(request.body, bytes) else b""
    fields = sorted(field for field in request.headers if field[0] not in ("content-length", "x-request-id"))
    text = json.dumps([request.method, request.target, fields, body.decode("latin-1")]).encode()
    return HttpResponse(200, (("Content-Length", str(len(text))),), stream(text))


REQUESTS = {
    "nothing special": asking(b"/function/NAME"),
    "a path and a query": asking(b"/function/NAME/a%2Fb/../c?x=%20&y&x=2"),
    "a path with the end of a line in it": asking(b"/function/NAME/a%0ab%0D%0a?x=%0a"),
    "a version": asking(b"/function/NAME:v1/x"),
    "a body": asking(b"/function/NAME/", method=b"POST", body=b"hi"),
    "a body that is JSON": asking(
        b"/function/NAME", b"Content-Type: application/json", method=b"PUT", body='{"ä": "\u20ac\\""}'.encode()
    ),
    "a body that is no text": asking(b"/function/NAME", b"Content-Type: image/png", method=b"POST", body=b"\xff\x00"),
    "a body that is packed": asking(b"/function/NAME", b"Content-Encoding: gzip", method=b"PATCH", body=b"\x1f\x8b"),
    "no body where one is usual": asking(b"/function/NAME", method=b"POST"),
    "a length of nothing": asking(b"/function/NAME", b"Content-Length: 0", method=b"POST"),
    "a body with GET": asking(b"/function/NAME", body=b"x"),
    "HEAD": asking(b"/function/NAME", method=b"HEAD"),
    "OPTIONS": asking(b"/function/NAME", method=b"OPTIONS"),
    "DELETE": asking(b"/function/NAME", method=b"DELETE"),
    "an unusual method": asking(b"/function/NAME", method=b"PROPFIND"),
    "HTTP/1.0": asking(b"/function/NAME", version=b"1.0"),
    "cookies": asking(b"/function/NAME", b"Cookie: a=1; b=2", b"Cookie: c=3"),
    "a field twice": asking(b"/function/NAME", b"X-A: 1", b"x-a: 2"),
    "fields with odd names": asking(b"/function/NAME", b"X_A: 1", b"X.B: 2", b"close: 3", b"TE: trailers"),
    "blanks around values": asking(b"/function/NAME", b"X-A: \t 1 \t ", b"X-B:2", b"X-C:"),
    "values beyond ASCII": asking(b"/function/NAME", "X-A: grüezi".encode(), b"X-B: \xff\xfe"),
    "credentials": asking(b"/function/NAME", b"Authorization: Bearer own"),
    "what only we say": asking(b"/function/NAME", b"X-Forwarded-For: 6.6.6.6", b"Forwarded: for=x", b"X-Request-Id: 1"),
    "a user agent": asking(b"/function/NAME", b'User-Agent: "quoted" \\ <x>'),
    "no such function": asking(b"/function/none"),
    "no such version": asking(b"/function/NAME:v9"),
    "no function at all": asking(b"/"),
    "a name that is encoded": asking(b"/function/%4eAME"),
    "an expectation": asking(b"/function/NAME", b"Expect: 100-continue", method=b"POST", body=b"hi"),
    "pieces": asking(b"/function/NAME", b"Transfer-Encoding: chunked", method=b"POST") + b"2\r\nhi\r\n0\r\n\r\n",
    "much": asking(b"/function/NAME", method=b"POST", body=b"x" * 70_000),
    "a long line": asking(b"/function/NAME?" + b"x" * 9_000),
    "a hundred and twenty fields": asking(b"/function/NAME", *(b"X-%d: 1" % n for n in range(120))),
}


@pytest.mark.parametrize("name", ["hello", "web"])
async def test_both_ways_answer_the_same_and_tell_functions_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async with two_ways(monkeypatch, on_request=told) as ways:
        ports = [str(way.port).encode() for way in (ways.aiohttp, ways.lane)]
        for what, request in REQUESTS.items():
            before = ways.claimed
            one, other = await ways.ask(request.replace(b"NAME", name.encode()))
            assert one.replace(ports[0], b"PORT") == other.replace(ports[1], b"PORT"), what
            assert one.startswith(b"HTTP/1."), what
            if what in ("nothing special", "a body", "HTTP/1.0", "cookies", "values beyond ASCII"):
                assert ways.claimed == before + 1, f"{what}: not by the lane"


async def test_events_are_the_same_over_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    names = [
        b"X-A",
        b"x-a",
        b"Cookie",
        b"User-Agent",
        b"Content-Type",
        b"Accept",
        b"X-Time",
        b"time",
        b"isBase64Encoded",
    ]
    values = [
        b"1",
        b'"',
        b"\\",
        b"a;b; c",
        b"text/plain",
        b"application/json",
        b"",
        b"\xc3\xbc",
        b"\xff",
        b'","time":"',
    ]

    def request() -> bytes:
        fields = [b"%b: %b" % (chance.choice(names), chance.choice(values)) for _ in range(chance.randrange(6))]
        target = b"/function/hello" + chance.choice([b"", b"/", b"/a/b", b"/%00%ff", b"/$default"])
        target += chance.choice([b"", b"?", b"?a=1&a=2&b", b"?time=1&x=%ff", b"?=&&"])
        body = chance.choice([b"", b"", b"text", b"\xff", "ü\u2028".encode(), b'{"a": "\\u0000"}', b"\x00"])
        return asking(target, *fields, method=chance.choice([b"GET", b"POST"]), body=body)

    async with two_ways(monkeypatch) as ways:
        for _ in range(10):
            requests = [request() for _ in range(20)]
            for asked, (one, other) in zip(requests, await asyncio.gather(*map(ways.ask, requests)), strict=True):
                assert one == other, asked
                assert one[9:12] in (b"200", b"400"), asked  # 400: one of the fields must not be there twice
        assert ways.claimed >= 100


ANSWERS: list[tuple[int, list[tuple[str, str]], bytes]] = [
    (200, [("Content-Length", "2")], b"ok"),
    (200, [("Content-Length", "0")], b""),
    (200, [], b"in pieces"),
    (200, [("content-length", "100000")], b"x" * 100_000),
    (404, [("Content-Type", "text/plain"), ("Content-Length", "2")], b"no"),
    (500, [("Content-Length", "4")], b"oops"),
    (204, [], b""),
    (304, [("Content-Length", "5"), ("ETag", '"a"')], b""),
    (299, [("Content-Length", "0")], b""),
    (302, [("Location", "/there"), ("Content-Length", "0")], b""),
    (200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Length", "0")], b""),
    (200, [("Server", "own"), ("Content-Length", "0")], b""),
    (200, [("X-A", "gr\xc3\xbcezi"), ("X-B", "\xff"), ("Content-Length", "0")], b""),
    (200, [("Connection", "X-Gone"), ("X-Gone", "1"), ("Keep-Alive", "1"), ("Content-Length", "0")], b""),
    (200, [("X-Request-Id", "own"), ("Content-Length", "0")], b""),
    (100, [], b""),
    (700, [], b""),
    (200, [("X", "a\r\nSet-Cookie: stolen=1"), ("Content-Length", "0")], b""),
    (200, [("X Y", "a"), ("Content-Length", "0")], b""),
    (200, [("X", "a" * 70_000), ("Content-Length", "0")], b""),
    (200, [("Content-Length", "5x")], b"hello"),
    (200, [("Content-Length", "3")], b"hello"),
    (200, [("Content-Length", "9")], b"hello"),
    (200, [("Content-Length", "5"), ("Content-Length", "6")], b"hello"),
]


@pytest.mark.parametrize(("status", "fields", "body"), ANSWERS)
async def test_answers_of_http_functions_are_the_same_by_both_ways(
    monkeypatch: pytest.MonkeyPatch, status: int, fields: list[tuple[str, str]], body: bytes
) -> None:
    async def answers(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(status, tuple(fields), stream(body[:5], body[5:]))

    async with two_ways(monkeypatch, on_request=answers) as ways:
        for version in (b"1.0", b"1.1"):
            for method in (b"GET", b"HEAD"):
                one, other = await ways.ask(asking(b"/function/web", method=method, version=version))
                assert one == other
                last = asking(b"/function/web", method=method, version=version)
                one, other = await ways.ask(last.replace(b"close", b"keep-alive") + last)
                assert one == other


PAYLOADS = [
    b'{"a": 1}',
    b"plain",
    b"",
    b"\xff\xfe",
    b'{"statusCode": 201, "headers": {"X-A": "b"}, "body": "text", "cookies": ["a=1", "b=2"]}',
    b'{"statusCode": 204, "body": "none"}',
    b'{"statusCode": 304}',
    b'{"statusCode": 200, "body": "/w==", "isBase64Encoded": true}',
    b'{"statusCode": 200, "headers": {"X": "a\\r\\nb"}}',
    b'{"statusCode": 99}',
    '{"statusCode": 200, "headers": {"X-A": "grüezi", "Date": "today"}, "body": "ü"}'.encode(),
]


@pytest.mark.parametrize("payload", PAYLOADS)
async def test_answers_of_lambda_functions_are_the_same_by_both_ways(
    monkeypatch: pytest.MonkeyPatch, payload: bytes
) -> None:
    async def answers(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(payload)

    async with two_ways(monkeypatch, answers) as ways:
        for method in (b"GET", b"HEAD"):
            one, other = await ways.ask(asking(b"/function/hello", method=method))
            assert one == other


FAILURES = [
    FunctionError("first\nsecond", error_type="Own"), TimedOut("slow"), OutOfMemory("big"), InstanceExited("gone"),
    BadFunctionResponse("bad"), ValueError("ours"),
]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
async def test_failures_are_the_same_by_both_ways_and_counted_the_same(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def fails(revision: Revision, event: bytes) -> InvocationResult:
        raise failure

    async def fails_too(revision: Revision, request: HttpRequest) -> HttpResponse:
        raise failure

    async with two_ways(monkeypatch, fails, fails_too) as ways:
        for name in (b"hello", b"web"):
            for method in (b"GET", b"HEAD"):
                one, other = await ways.ask(asking(b"/function/" + name, method=method))
                assert one == other
                assert one[9:10] == b"5"
        assert ways.claimed == 4
        tallies = [way.path.invoker.tallies() for way in (ways.aiohttp, ways.lane)]
        assert tallies[0] == tallies[1]


async def test_functions_by_host_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_ways(monkeypatch, domain="example.org") as ways:
        for host in (b"hello.example.org", b"HELLO.example.org:80", b"example.org", b"none.example.org", b"a.b.c"):
            one, other = await ways.ask(asking(b"/function/hello/x").replace(b"Host: a", b"Host: " + host))
            assert one == other, host
        assert ways.claimed == 4


def test_a_head_is_read_in_one_way_or_not_at_all() -> None:
    good = b"GET /function/hello HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n"
    assert head.read(good) is not None
    for old, new in (
        (b"Host: a", b"Host : a"), (b"Host: a", b"Host: a\r\nHost: a"), (b"X-A: b", b"X-A: b\r\n c"),
        (b"\r\nX", b"\nX"), (b"X-A: b", b"X-A: b\rc"), (b"X-A: b", b"X-A: \0"), (b"Host: a", b"Host: a/b"),
        (b"Host: a\r\n", b""), (b"/function", b"http://b/function"), (b"GET", b"get"), (b"GET ", b"GET  "),
        (b"HTTP/1.1", b"HTTP/1.2"), (b"HTTP/1.1", b"HTTP/1.1 "), (b"X-A: b", b"Content-Length: +5"),
        (b"X-A: b", b"Content-Length: 5, 5"), (b"X-A: b", b"Content-Length: 05"), (b"X-A: b", b"Content-Length: "),
        (b"X-A: b", b"Content-Length: 5\r\nContent-Length: 5"), (b"X-A: b", b"Transfer-Encoding: chunked"),
        (b"X-A: b", b"Connection: close, x"), (b"X-A: b", b"Connection: close\r\nConnection: keep-alive"),
        (b"X-A: b", b"Upgrade: websocket"), (b"X-A: b", b"Expect: x"), (b"hello", b"he llo"), (b"hello", b"h\xc3\xbc"),
        (b"hello", b"hello#x"), (b"X-A", b""), (b"X-A: b", b"X-A"), (b"\r\n\r\n", b"\r\n\r\nX"),
    ):  # fmt: skip
        assert old in good
        assert head.read(good.replace(old, new, 1)) is None, new


def test_answers_are_compared_without_what_differs_each_time() -> None:
    answer = b"HTTP/1.1 200 OK\r\nDate: now\r\nB: 1\r\nA: 2\r\n\r\n{}"
    assert comparable(answer) == b"HTTP/1.1 200 OK\r\n*\r\na: 2\r\nb: 1\r\n\r\n{}"
