"""Ten times what a function can do: what it can do is done, the rest is refused at once and told when to come back, and
afterwards all is as before."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.support.server import RunningServer
from tests.support.standing import family, resident_kb
from tests.support.steady import GOOD, GOOD_TOML, Steady, percentile

pytestmark = [pytest.mark.root, pytest.mark.oci]

SECONDS = 60 if SOAK else 4
WORK_SECONDS = 0.2
MOST = 4
CAPACITY = MOST / WORK_SECONDS  # calls per second
TIMES = 10
RECOVERY_SECONDS = 5.0
MOST_KB = 65_536  # of the server's memory, for what waits and what is refused
LATE_SECONDS = 0.1  # for a call to come; beyond it the machine stood still
SHARE = 0.5  # of what it can do, at least, whatever else this machine does meanwhile; the real one is printed
SLEEPS = f"""
import time

def handler(event, context):
    time.sleep({WORK_SECONDS})
    return {{"statusCode": 200, "body": "done"}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("overload")
    with RunningServer(folder / "data", "--driver", "oci", whole=True) as running:
        running.push_code(folder, "good", GOOD, GOOD_TOML)
        yield running


@dataclass(frozen=True, slots=True)
class Call:
    status: int
    seconds: float
    retry_after: str
    reason: str


async def call(host: str, port: str, path: str) -> Call:
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, _ = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    lines = head.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    return Call(
        int(lines[0].split()[1]), time.monotonic() - began, fields.get("retry-after", ""), fields.get("reason", "")
    )


async def overload(server: RunningServer, path: str) -> list[Call]:
    """Open loop: a call comes when it is due, whether earlier ones are answered or not. Where this machine stands
    still, the rest comes as much later, and not at once."""
    host, port = server.public.removeprefix("http://").split(":")
    calls: list[asyncio.Task[Call]] = []
    began, held = time.monotonic(), 0.0
    for number in range(round(SECONDS * CAPACITY * TIMES)):
        due = began + held + number / (CAPACITY * TIMES)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        late = time.monotonic() - due
        held += late if late > LATE_SECONDS else 0.0
        calls.append(asyncio.create_task(call(host, port, path)))
    return await asyncio.gather(*calls)


@pytest.mark.parametrize("queue_timeout", [0, 1])
def test_ten_times_its_capacity_is_done_or_refused_and_over_at_once(
    server: RunningServer, tmp_path: Path, queue_timeout: int
) -> None:
    toml = f"memory = 512\nqueue_timeout = {queue_timeout}\n[scale]\nmax = {MOST}"
    server.push_code(tmp_path, "sleeps", SLEEPS, toml)
    server.faas("scale", "sleeps", str(MOST))
    deadline = time.monotonic() + 30
    while server.get("/v1/functions/sleeps", api=True).json()["instances"]["idle"] < MOST:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = resident_kb(family(server.pid))
    with Steady(server.public, "/function/good") as steady:
        calls = asyncio.run(overload(server, "/function/sleeps"))
    grew = resident_kb(family(server.pid)) - before
    counted = Counter(call.status for call in calls)
    refused = [call.seconds * 1000 for call in calls if call.status == 429]
    done = counted[200] / (CAPACITY * SECONDS)
    print(f"done {done:.0%} of its capacity, {counted}; 429 p50 {percentile(refused, 0.5):.1f} ms, p99", end=" ")
    print(f"{percentile(refused, 0.99):.1f} ms; a neighbour's p99 {steady.p99_ms():.1f} ms;", end=" ")
    print(f"{grew} kB more; {Counter(call.reason for call in calls)}", end="; ")
    assert set(counted) == {200, 429}
    assert all(call.retry_after.isdigit() and int(call.retry_after) >= 1 for call in calls if call.status == 429)
    assert all(call.reason for call in calls if call.status == 429)
    assert grew < MOST_KB
    assert done > SHARE
    assert steady.lost == []
    began = time.monotonic()
    deadline = began + RECOVERY_SECONDS
    while (status := server.get("/function/sleeps").status) != 200:
        assert time.monotonic() < deadline, status
    print(f"answers again after {time.monotonic() - began:.2f} s")
    server.faas("rm", "sleeps", "--yes")


def test_ten_times_its_throttle_is_let_in_at_its_rate_and_the_rest_refused_at_once(
    server: RunningServer, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "metered", GOOD + "# metered", f"[throttle]\nrate = {CAPACITY}\nburst = 1")
    with Steady(server.public, "/function/good") as steady:
        began = time.monotonic()
        calls = asyncio.run(overload(server, "/function/metered"))
        took = time.monotonic() - began
    counted = Counter(call.status for call in calls)
    refused = [call.seconds * 1000 for call in calls if call.status == 429]
    done = counted[200] / (CAPACITY * SECONDS)
    print(f"let in {done:.0%} of its rate, {counted}; 429 p50 {percentile(refused, 0.5):.1f} ms, p99", end=" ")
    print(f"{percentile(refused, 0.99):.1f} ms; a neighbour's p99 {steady.p99_ms():.1f} ms")
    assert set(counted) == {200, 429}
    assert done > SHARE
    assert counted[200] <= CAPACITY * took + 2
    assert all(call.retry_after == "1" for call in calls if call.status == 429)
    assert steady.lost == []
    server.faas("rm", "metered", "--yes")
