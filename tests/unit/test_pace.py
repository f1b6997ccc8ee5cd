"""Who does not take what it asked for is cut, whatever it comes from; who takes it slowly is not."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from faas.pace import Pace, unacknowledged
from faas.web import PACE_BYTES, PROGRESS_SECONDS, RUNNER_OPTIONS
from registry.sendfile import FileSender
from tests.support.control import until
from tests.support.raw_http import serving

SIZE = 24 << 20  # more than the kernel takes for both ends
SECONDS = 1.5
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_the_pace_is_so_many_bytes_in_so_many_seconds_since_the_last_ones() -> None:
    pace = Pace(0.0, 0)
    assert pace.is_kept(PROGRESS_SECONDS - 1, PACE_BYTES - 1)
    assert not pace.is_kept(PROGRESS_SECONDS, PACE_BYTES - 1)
    assert pace.is_kept(PROGRESS_SECONDS, PACE_BYTES), "the time begins anew"
    assert pace.is_kept(2 * PROGRESS_SECONDS - 1, PACE_BYTES)
    assert not pace.is_kept(2 * PROGRESS_SECONDS, PACE_BYTES)
    assert pace.is_kept(2 * PROGRESS_SECONDS, 0), "more was sent: there was room"


def test_what_the_kernel_holds_is_not_taken() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as writer, listener.accept()[0] as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                writer.send(bytes(65_536))
        assert unacknowledged(writer.fileno()) > 65_536
        descriptor = writer.fileno()
    assert unacknowledged(descriptor) == unacknowledged(-1) == 0


async def in_one_piece(request: web.Request) -> web.StreamResponse:
    return web.Response(body=bytes(SIZE))


async def streamed(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(SIZE // 65_536):
        await answer.write(bytes(65_536))
    await answer.write_eof()
    return answer


@pytest.fixture
def from_a_file(tmp_path: Path) -> Iterator[Handler]:
    blob, sender = tmp_path / "blob", FileSender()
    blob.write_bytes(bytes(SIZE))

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        assert await sender.send(request, answer, blob, SIZE, 0, SIZE)
        return answer

    yield handler
    sender.close()


def read(port: int, size: int, pause: float, seconds: float) -> tuple[int, bool]:
    """Ask, and read at most `size` bytes each `pause` seconds: how many came, and whether the server has cut it off,
    which is seen before all that came is read."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        look = select.poll()
        look.register(client, 0)
        got, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            if any(what & select.POLLERR for _, what in look.poll(0)):
                return got, True
            got += len(client.recv(size))
            time.sleep(pause)
    return got, False


class Patient(Pace):
    """A time in which this machine stands still is none in which a client could have read."""

    __slots__ = ("_passed", "_seen")

    def __init__(self, now: float, taken: int) -> None:
        super().__init__(now, taken)
        self._passed = self._seen = now

    def is_kept(self, now: float, taken: int) -> bool:
        self._passed += min(now - self._seen, 0.3)
        self._seen = now
        return super().is_kept(self._passed, taken)


@pytest.mark.parametrize("way", ["in_one_piece", "streamed", "from_a_file"])
async def test_a_client_that_hardly_reads_is_cut_with_all_that_is_held_for_it(
    way: str, from_a_file: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faas.pace.PROGRESS_SECONDS", SECONDS)
    monkeypatch.setattr("faas.runner.Pace", Patient)
    monkeypatch.setattr("registry.sendfile.Pace", Patient)
    monkeypatch.setattr("faas.runner.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("registry.sendfile.LOOK_SECONDS", 0.1)
    answer = {"in_one_piece": in_one_piece, "streamed": streamed, "from_a_file": from_a_file}[way]
    open_now = 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal open_now
        open_now += 1
        try:
            return await answer(request)
        finally:
            open_now -= 1

    app = web.Application()
    app.router.add_get("/", counted)
    async with serving(app, **RUNNER_OPTIONS) as port:
        steady = asyncio.create_task(asyncio.to_thread(read, port, 131_072, 0.05, 2.5 * SECONDS))
        got, is_cut = await asyncio.to_thread(read, port, 1, 0.05, 30)
        assert is_cut
        assert got < 10_000
        got, is_cut = await steady
        assert not is_cut
        assert got > PACE_BYTES
        await until(lambda: not open_now)


async def test_who_reads_again_in_time_gets_the_rest_and_is_not_looked_at_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("faas.runner.LOOK_SECONDS", 0.05)
    app = web.Application()
    app.router.add_get("/", in_one_piece)
    async with serving(app, **RUNNER_OPTIONS) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.2)
            assert len(await reader.readexactly(SIZE)) == SIZE
        writer.close()
