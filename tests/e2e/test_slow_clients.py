"""Thousands of clients that send or read a byte now and then, or only stay, beside a steady load: cut in time, at a
bounded price, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from faas.web import HEAD_SECONDS, PROGRESS_SECONDS
from tests.support.processes import children
from tests.support.server import RunningServer
from tests.support.steady import GOOD, GOOD_TOML, Steady

pytestmark = [
    pytest.mark.root,
    pytest.mark.oci,
    pytest.mark.soak,  # the short form: tests/unit/test_slow_clients.py
    pytest.mark.timeout(600),
]

CLIENTS = 2000
PAUSE = 10.0  # seconds between two bytes
LATEST = 2 * HEAD_SECONDS + 5  # the lane's time, then aiohttp's
BODY_LATEST = PROGRESS_SECONDS + 15
READERS = 500
READ_SECONDS = 40.0
LARGE = 262_144  # bytes of an answer that is not read
PIPELINED = 10_000
CONNECTIONS = 5000
FILES = 256  # that a small server may open
MOST_EACH = 65_536  # bytes of memory, of a connection
ALONE_SECONDS = 10.0
HEAD = b"GET /function/good HTTP/1.1\r\nHost: a\r\nX-Slow: "
BODY = b"POST /function/good HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
LARGE_CODE = f"""
def handler(event, context):
    return {{"statusCode": 200, "body": "x" * {LARGE}}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("slow")
    with RunningServer(folder / "data", "--driver", "oci", whole=True) as running:
        running.push_code(folder, "good", GOOD, GOOD_TOML)
        running.push_code(folder, "large", LARGE_CODE, GOOD_TOML)
        yield running


async def dribble(host: str, port: int, first: bytes, latest: float) -> float:
    """`first`, then a byte now and then: seconds until the server cut it off."""
    reader, writer = await asyncio.open_connection(host, port)
    began = time.monotonic()
    writer.write(first)

    async def send() -> None:
        while True:
            await asyncio.sleep(PAUSE)
            writer.write(b"a")

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(latest + 30):
            await reader.read()
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        writer.close()
    return time.monotonic() - began


async def crowd(server: RunningServer, first: bytes, latest: float) -> tuple[list[float], int]:
    """When each was cut; bytes of memory that the server had more while all were there."""
    host, port = server.public.removeprefix("http://").split(":")
    before = resident(server)
    clients = []
    for number in range(CLIENTS):
        clients.append(asyncio.create_task(dribble(host, int(port), first, latest)))
        if number % 100 == 99:
            await asyncio.sleep(0.1)
    await asyncio.sleep(HEAD_SECONDS / 3)
    grew = resident(server) - before
    return list(await asyncio.gather(*clients)), grew


def resident(server: RunningServer) -> int:
    """Bytes of the server's largest process: the one that serves."""
    pids = [server.pid, *children(server.pid)]
    return max(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096


@pytest.mark.parametrize(("first", "latest"), [(HEAD, LATEST), (BODY, BODY_LATEST)], ids=["heads", "bodies"])
def test_two_thousand_slow_clients_are_cut_in_time_and_a_neighbour_goes_on(
    server: RunningServer, first: bytes, latest: float
) -> None:
    with Steady(server.public, "/function/good") as alone:
        time.sleep(ALONE_SECONDS)
    with Steady(server.public, "/function/good") as beside:
        cut, grew = asyncio.run(crowd(server, first, latest))
    when = dict(Counter(round(one, -1) for one in cut))  # those at once: beyond the listener's share of descriptors
    print(f"cut after so many seconds: {when}; {grew / CLIENTS / 1024:.1f} KB a connection", end="; ")
    print(f"a neighbour's p99 {alone.p99_ms():.1f} → {beside.p99_ms():.1f} ms")
    assert max(cut) <= latest
    assert beside.lost == []


async def read_slowly(server: RunningServer) -> int:
    """Bytes of memory that the server had more, while so many read a byte a second."""
    host, port = server.public.removeprefix("http://").split(":")
    before, grew = resident(server), 0
    clients = []
    for _ in range(READERS):
        client = socket.create_connection((host, int(port)), 30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /function/large HTTP/1.1\r\nHost: a\r\n\r\n")
        client.setblocking(False)
        clients.append(client)
        await asyncio.sleep(0.01)
    end = time.monotonic() + READ_SECONDS
    while time.monotonic() < end:
        await asyncio.sleep(1)
        for client in clients:
            with suppress(OSError):
                client.recv(1)
        grew = max(grew, resident(server) - before)
    for client in clients:
        client.close()
    return grew


def test_clients_that_read_a_byte_a_second_cost_no_more_than_their_answers(server: RunningServer) -> None:
    with Steady(server.public, "/function/good") as beside:
        grew = asyncio.run(read_slowly(server))
    print(f"{READERS} slow readers: {grew / READERS / 1024:.1f} KB each; a neighbour's p99 {beside.p99_ms():.1f} ms")
    assert beside.lost == []
    assert grew <= READERS * LARGE * 2


async def pipelined(server: RunningServer) -> tuple[bytes, int]:
    """What comes to so many requests that are sent at once; bytes of memory that the server had more."""
    host, port = server.public.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    before, grew, answer = resident(server), 0, bytearray()

    async def send() -> None:
        for number in range(PIPELINED):
            last = b"Connection: close\r\n" if number == PIPELINED - 1 else b""
            writer.write(b"GET /function/good/p%dz HTTP/1.1\r\nHost: a\r\n%b\r\n" % (number, last))
        await writer.drain()

    sending = asyncio.create_task(send())
    async with asyncio.timeout(300):
        while data := await reader.read(65_536):
            answer += data
            grew = max(grew, resident(server) - before)
    await sending
    writer.close()
    return bytes(answer), grew


def test_ten_thousand_requests_at_once_on_one_connection_are_answered_in_order(server: RunningServer) -> None:
    answer, grew = asyncio.run(pipelined(server))
    print(f"{answer.count(b'HTTP/1.1 200')} answers; {grew // 1024} KB more")
    assert answer.count(b"HTTP/1.1 200") == PIPELINED
    assert [part.split(b"z")[0] for part in answer.split(b"\r\n\r\n/p")[1:]] == [b"%d" % n for n in range(PIPELINED)]
    assert grew <= 16 * 1_048_576


def status_of(client: socket.socket) -> bytes:
    """Of a request on this connection; empty where the server has closed it."""
    try:
        client.sendall(b"GET /function/good/x HTTP/1.1\r\nHost: a\r\n\r\n")
        return client.recv(65_536)[9:12]
    except OSError:
        return b""


def many(server: RunningServer, count: int) -> tuple[Counter[bytes], int]:
    """The answers of so many connections that are open at once; bytes of memory that the server had more."""
    host, port = server.public.removeprefix("http://").split(":")
    before = resident(server)
    clients = [socket.create_connection((host, int(port)), 30) for _ in range(count)]
    try:
        return Counter(status_of(client) for client in clients), resident(server) - before
    finally:
        for client in clients:
            client.close()


def test_five_thousand_connections_are_served_and_forgotten(server: RunningServer) -> None:
    answered, grew = many(server, CONNECTIONS)
    print(f"{CONNECTIONS} connections: {answered}, {grew / CONNECTIONS / 1024:.1f} KB each")
    assert set(answered) <= {b"200", b"503", b""}, "beyond its share of descriptors they are refused"
    assert answered[b"200"] > CONNECTIONS / 10
    assert grew <= MOST_EACH * CONNECTIONS
    assert many(server, 50)[0] == {b"200": 50}


def test_a_server_that_may_open_few_files_refuses_what_is_beyond_and_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nulimit -n {FILES}\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with RunningServer(tmp_path / "data", "--driver", "oci") as small:
        answered, _ = many(small, 1000)  # of a function that is not there: with so few files runc starts none
        print(f"{FILES} files, 1000 connections: {answered}")
        assert set(answered) <= {b"404", b"503", b""}
        time.sleep(1)
        assert many(small, 10)[0] == {b"404": 10}
