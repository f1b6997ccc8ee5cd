"""Thousands of clients that send a byte now and then, beside a steady load: cut in time, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.web import HEAD_SECONDS
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
ALONE_SECONDS = 10.0
HEAD = b"GET /function/good HTTP/1.1\r\nHost: a\r\nX-Slow: "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("slow")
    with RunningServer(folder / "data", "--driver", "oci") as running:
        running.push_code(folder, "good", GOOD, GOOD_TOML)
        yield running


async def dribble(host: str, port: int) -> float:
    """Seconds until the server cut it off."""
    reader, writer = await asyncio.open_connection(host, port)
    began = time.monotonic()
    writer.write(HEAD)

    async def send() -> None:
        while True:
            await asyncio.sleep(PAUSE)
            writer.write(b"a")

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(LATEST + 30):
            await reader.read()
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        writer.close()
    return time.monotonic() - began


async def crowd(server: RunningServer) -> tuple[list[float], int]:
    """When each was cut; bytes of memory that the server had more while all were there."""
    host, port = server.public.removeprefix("http://").split(":")
    before = resident(server)
    clients = []
    for number in range(CLIENTS):
        clients.append(asyncio.create_task(dribble(host, int(port))))
        if number % 100 == 99:
            await asyncio.sleep(0.1)
    await asyncio.sleep(HEAD_SECONDS / 3)
    grew = resident(server) - before
    return list(await asyncio.gather(*clients)), grew


def resident(server: RunningServer) -> int:
    """Bytes of the server's largest process: the one that serves."""
    pids = [server.pid, *children(server.pid)]
    return max(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * 4096


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_thousand_slow_heads_are_cut_in_time_and_a_neighbour_goes_on(server: RunningServer) -> None:
    with Steady(server.public, "/function/good") as alone:
        time.sleep(ALONE_SECONDS)
    with Steady(server.public, "/function/good") as beside:
        cut, grew = asyncio.run(crowd(server))
    when = dict(Counter(round(one, -1) for one in cut))  # those at once: beyond the listener's share of descriptors
    print(f"cut after so many seconds: {when}; {grew / CLIENTS / 1024:.1f} KB a connection", end="; ")
    print(f"a neighbour's p99 {alone.p99_ms():.1f} → {beside.p99_ms():.1f} ms")
    assert max(cut) <= LATEST
    assert beside.lost == []
