"""Clients that send a byte now and then, on both ways to functions: what they may take, and how they are cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from faas.bodies import BODIES
from faas.leases import InvocationResult
from faas.protocol import Revision
from faas.web import RUNNER_OPTIONS
from tests.support.data_path import application
from tests.support.fake_driver import eventually
from tests.support.fake_worker import FakeWorker
from tests.support.raw_http import LANE, serving
from tests.support.smuggling import GET
from tests.unit.test_public import hello

HEAD_SECONDS = 1.0
MANY = 40
POST = b"POST /function/hello HTTP/1.1\r\nHost: a\r\n"


async def dribble(port: int, first: bytes, then: bytes, pause: float) -> tuple[bytes, float]:
    """Send `first`, then one byte of `then` every `pause` seconds, for ever; what came back, and after how long."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(first)
        while True:
            for byte in then:
                await asyncio.sleep(pause)
                writer.write(bytes([byte]))
                await writer.drain()

    sending = asyncio.create_task(send())
    answer = b""
    try:
        async with asyncio.timeout(15):
            while data := await reader.read(65_536):  # piece by piece: a reset must not take along what came before it
                answer += data
    except ConnectionError:
        pass
    finally:
        ended = loop.time() - began
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    return answer, ended


async def answered(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET + b"Host: a\r\n\r\n")
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    return line[9:12]


@pytest.mark.parametrize("first", [b"G", b"GET /func", GET + b"Host: a\r\nX-Slow: "], ids=["method", "line", "field"])
async def test_a_head_that_comes_byte_by_byte_is_cut_when_its_time_is_over(first: bytes) -> None:
    async with serving(application(hello()), **{**RUNNER_OPTIONS, "keepalive_timeout": HEAD_SECONDS}) as port:
        slow = [asyncio.create_task(dribble(port, first, b"ET /" if first == b"G" else b"a", 0.1)) for _ in range(MANY)]
        await asyncio.sleep(0.3)
        assert await answered(port) == b"200"
        for body, seconds in await asyncio.gather(*slow):
            assert not body.startswith(b"HTTP/1.1 200")
            assert seconds >= HEAD_SECONDS / 2  # not at once: a slow network is no attack
        assert await answered(port) == b"200"


async def test_a_body_that_comes_byte_by_byte_is_408_and_holds_nothing_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faas.web.PROGRESS_SECONDS", 1.0)
    monkeypatch.setattr("gateway.lane.connection.BODY_SECONDS", 0.2)
    before = BODIES.held
    async with serving(application(hello()), **RUNNER_OPTIONS, lingering_time=0.5) as port:
        head = POST + b"Content-Length: 1000\r\n\r\n"
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
        slow = [asyncio.create_task(dribble(port, head, b"a", 0.1)) for _ in range(MANY // 2)]
        slow += [asyncio.create_task(dribble(port, chunked, b"1\r\na\r\n", 0.1)) for _ in range(MANY // 2)]
        await asyncio.sleep(0.3)
        assert await answered(port) == b"200"
        for body, _ in await asyncio.gather(*slow):
            assert body[9:12] == b"408"
            assert b"Connection: close" in body
    assert before == BODIES.held


def read_to_its_end(client: socket.socket) -> None:
    while client.recv(65_536):
        pass


async def test_a_client_that_hardly_reads_its_answer_is_cut_and_one_that_reads_slowly_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def large(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(b'"' + b"x" * 5_900_000 + b'"')

    monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", True)
    monkeypatch.setattr("faas.pace.PROGRESS_SECONDS", 4.0)
    app = application(hello(FakeWorker(large)))
    async with serving(app, **RUNNER_OPTIONS) as port:
        clients = []
        for held in (4096, 262_144):
            client = socket.create_connection(("127.0.0.1", port), 5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, held)
            client.sendall(GET + b"Host: a\r\n\r\n")
            clients.append(client)
        stuck, slow = clients
        slow.setblocking(False)
        read, connections = 0, app[LANE].connections
        await eventually(lambda: len(connections) == 2)
        async with asyncio.timeout(60):
            while len(connections) == 2:
                await asyncio.sleep(0.05)
                with contextlib.suppress(BlockingIOError):
                    read += len(slow.recv(32_768))
        assert read > 200_000
        assert len(connections) == 1
        with pytest.raises(ConnectionResetError):  # it was the other one
            read_to_its_end(stuck)
        for client in (stuck, slow):
            client.close()


async def test_a_client_that_reads_nothing_leaves_others_alone() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        stuck = []
        for _ in range(MANY):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write((GET + b"Host: a\r\n\r\n") * 200)
            stuck.append(writer)
        assert [await answered(port) for _ in range(20)] == [b"200"] * 20
        for writer in stuck:
            writer.transport.abort()
