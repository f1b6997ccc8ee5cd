"""A connection that the lane has handed over comes back for a plain request, between two requests and never else."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from faas.boundary import Boundary
from faas.leases import HttpRequest, HttpResponse
from faas.protocol import Revision
from faas.spec import Interface
from tests.support.fake_worker import FakeWorker, body_size, stream
from tests.support.tls_doors import by_uvloop, entrances
from tests.unit.test_lane_connections import GET, Gated, answer, lane, opened

POST = b"POST /function/hello HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\na\r\n\r\n0\r\n\r\n"
LARGE = POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000
# None of these is plain; each is answered, and the connection stays.
OTHERS = {
    "a body in chunks": CHUNKED,
    "a large body": LARGE,
    "a large body that looks like a head's end": LARGE[:-4] + b"\r\n\r\n",
    "a name that is encoded": GET.replace(b"hello", b"%68ello"),
    "another way's path": b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
}


async def size(revision: Revision, request: HttpRequest) -> HttpResponse:
    """How many bytes the request's body has."""
    text = str(await body_size(request)).encode()
    return HttpResponse(200, (("Content-Length", str(len(text))),), stream(text))


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_after_a_request_that_is_not_plain_the_next_plain_one_is_the_lanes_again(
    monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    worker = FakeWorker(on_request=size)
    async with lane(monkeypatch, worker, interface=Interface.HTTP, concurrency=2) as served:
        reader, writer = await opened(served.port)
        for round_ in range(3):
            for request, before in ((other, 2 * round_), (GET, 2 * round_), (GET, 2 * round_ + 1)):
                assert worker.claimed == before
                writer.write(request)
                status, _ = await answer(reader)
                assert status == (404 if request is OTHERS["another way's path"] else 200)
        assert worker.claimed == 6
        writer.close()


async def test_who_sends_much_that_is_not_plain_is_looked_at_less_and_comes_back_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with lane(monkeypatch, FakeWorker()) as served:
        reader, writer = await opened(served.port)
        for _ in range(40):
            writer.write(CHUNKED)
            assert (await answer(reader))[0] == 200
        for _ in range(16):
            writer.write(GET)
            assert (await answer(reader))[0] == 200
        assert served.worker.claimed > 0
        writer.close()


async def test_it_comes_back_in_whatever_pieces_the_other_request_came(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    worker = FakeWorker(on_request=size)
    async with lane(monkeypatch, worker, interface=Interface.HTTP, concurrency=2) as served:
        for body in (LARGE, CHUNKED):
            reader, writer = await opened(served.port)
            cuts = sorted(chance.sample(range(len(POST) + 30, len(body)), 3))
            for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
                writer.write(body[start:end])
                await asyncio.sleep(0.01)
            assert (await answer(reader))[0] == 200
            before = worker.claimed
            writer.write(GET + GET)  # where it was not sure after the last one, it is after these
            assert [await answer(reader) for _ in range(2)] == [(200, b"0")] * 2
            writer.write(GET)
            assert await answer(reader) == (200, b"0")
            assert worker.claimed > before
            writer.close()


async def _pipelined(writer: asyncio.StreamWriter, gate: Gated) -> int:
    """Requests behind one that is being answered, the last one in two pieces."""
    writer.write(CHUNKED)
    await asyncio.sleep(0.05)
    writer.write(GET + GET[:10])
    gate.may.set()
    await asyncio.sleep(0.05)
    writer.write(GET[10:])
    return 3


async def _begun(writer: asyncio.StreamWriter, gate: Gated) -> int:
    """A request that begins in the piece in which the one before it ends."""
    gate.may.set()
    writer.write(LARGE + GET[:10])
    await asyncio.sleep(0.2)
    writer.write(GET[10:])
    return 2


async def _empty_lines(writer: asyncio.StreamWriter, gate: Gated) -> int:
    """Lines between requests, which a server passes over."""
    gate.may.set()
    writer.write(CHUNKED + b"\r\n")
    await asyncio.sleep(0.1)
    writer.write(b"\r\n\r\n")
    await asyncio.sleep(0.05)
    writer.write(GET)
    return 2


@pytest.mark.parametrize("send", [_pipelined, _begun, _empty_lines])
async def test_what_was_read_already_of_the_next_request_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, send: Callable[[asyncio.StreamWriter, Gated], Awaitable[int]]
) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate), instances=2) as served:
        reader, writer = await opened(served.port)
        count = await send(writer, gate)
        assert [(await answer(reader))[0] for _ in range(count)] == [200] * count
        before = served.worker.claimed
        for _ in range(2):
            writer.write(GET)
            assert (await answer(reader))[0] == 200
        assert served.worker.claimed > before, "and then it comes back"
        writer.close()


@pytest.mark.parametrize("first", [LARGE, CHUNKED], ids=["length", "chunks"])
async def test_the_rest_of_a_request_that_looks_like_a_plain_one_is_no_request(
    monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    begun = b"GET /function/hello/real HTTP/1.1\r\nX-Odd: "
    async with lane(monkeypatch, FakeWorker()) as served:
        reader, writer = await opened(served.port, first + begun)
        assert (await answer(reader))[0] == 200
        await asyncio.sleep(0.05)
        writer.write(b"GET /function/hello/hidden HTTP/1.1\r\nHost: a\r\n\r\n")
        status, body = await answer(reader)
        assert (status, json.loads(body)["rawPath"]) == (200, "/real")
        assert served.worker.claimed == 0
        writer.close()


async def test_a_body_that_waits_for_100_continue_is_whole_before_the_connection_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = FakeWorker(on_request=size)
    async with lane(monkeypatch, worker, interface=Interface.HTTP, concurrency=2) as served:
        reader, writer = await opened(served.port, POST + b"Content-Length: %d\r\n" % len(GET))
        writer.write(b"Expect: 100-continue\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(GET)  # the body
        assert await answer(reader) == (200, str(len(GET)).encode())
        assert worker.claimed == 0, "a body is no request"
        writer.write(GET)
        assert await answer(reader) == (200, b"0")
        assert worker.claimed == 1
        writer.close()


async def test_what_follows_a_declined_or_an_unsaid_body_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade = b"GET /function/none HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    unsaid = b"POST /function/none HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    unsaid %= len(GET)
    async with lane(monkeypatch, FakeWorker()) as served:
        for first in (upgrade, unsaid):
            reader, writer = await opened(served.port, first)
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(GET)
                rest = await reader.read()
            assert b"404" in head.partition(b"\r\n")[0], head
            assert b"connection: close" in head.lower()
            assert b"HTTP/1.1" not in rest, "nothing was answered after it"
            writer.close()
        assert served.worker.claimed == 0


async def test_on_the_last_call_no_connection_comes_back() -> None:
    async with entrances() as (_, entrance):
        reader, writer = await entrance.opened(CHUNKED)
        assert (await answer(reader))[0] == 200
        refusing = asyncio.create_task(entrance.doors.refuse(hand_over=True))
        await asyncio.sleep(0)  # it has told all connections, and waits
        writer.write(GET)
        async with asyncio.timeout(5):
            assert b"\r\nConnection: close\r\n" in await reader.read()
        await refusing
        assert entrance.worker.claimed == 0
        writer.close()


@by_uvloop
async def test_over_tls_it_comes_back_too(tmp_path: Path) -> None:
    async with entrances(tmp_path) as (_, entrance):
        reader, writer = await entrance.opened()
        for count in range(3):
            for request in (CHUNKED, GET):
                writer.write(request)
                assert (await answer(reader))[0] == 200
            assert entrance.worker.claimed == count + 1
        writer.close()


BOUNDARIES: list[tuple[str, list[tuple[bytes, int, int | None]], bool]] = [
    ("nothing has come", [], True),
    ("a head", [(GET, 1, 0)], True),
    ("a head and some of the next", [(GET + b"GE", 1, 0)], False),
    ("two", [(GET + GET, 2, 0)], True),
    ("a body", [(POST + b"Content-Length: 2\r\n\r\nhi", 1, 2)], True),
    ("half a body", [(POST + b"Content-Length: 2\r\n\r\nh", 1, 2)], False),
    ("a body in two pieces", [(POST + b"Content-Length: 2\r\n\r\nh", 1, 2), (b"i", 0, None)], True),
    ("a body and more", [(POST + b"Content-Length: 2\r\n\r\nh", 1, 2), (b"iG", 0, None)], False),
    ("a head in two pieces", [(GET[:20], 0, None), (GET[20:], 1, 0)], True),
    ("a body after a head in two pieces", [(POST, 0, None), (b"Content-Length: 2\r\n\r\nhi", 1, 2)], False),
    ("sure again after a doubt", [(GET + b"GE", 1, 0), (GET[2:], 1, 0)], True),
    ("chunks", [(CHUNKED, 1, None)], True),
    ("chunks, and some of the next", [(CHUNKED + b"G", 1, None)], False),
]


@pytest.mark.parametrize(("came", "here"), [case[1:] for case in BOUNDARIES], ids=[case[0] for case in BOUNDARIES])
def test_a_boundary_is_known_or_doubted(came: list[tuple[bytes, int, int | None]], here: bool) -> None:
    boundary = Boundary()
    for data, begun, length in came:
        boundary.took(data, begun, length)
    assert boundary.is_here is here
