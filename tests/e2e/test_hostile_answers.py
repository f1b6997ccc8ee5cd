"""An http function that answers as no server should, on a real server: its own callers hear 502 or see a cut answer,
and everybody else notices nothing."""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import SOAK
from tests.support import hostile_http
from tests.support.server import RunningServer
from tests.support.standing import family, resident_kb
from tests.support.steady import GOOD, GOOD_TOML, Beside, Steady

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(1800 if SOAK else 120)]

ROUNDS = 20 if SOAK else 1
MUTATED = 20_000 if SOAK else 400
AT_ONCE = 30
TIMEOUT = 5  # seconds, of the function
DEADLINE = 30.0  # for any answer
LATE_SECONDS = 0.5  # it comes 0.05 s late
READ_PAUSE = 0.005  # between two pieces of an endless answer
MOST_KB = 20_480
OTHER_LINES = 200  # of the log
TOML = f"""
name = "raw"
runtime = "python"
app = "app:none"
public = true
entrypoint = ["/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}", "/var/task/app.py"]
concurrency = 50
timeout = {TIMEOUT}
memory = 512
[scale]
min = 1
max = 1
"""
MODES: dict[str, Any] = {"__name__": "looked at"}
exec(hostile_http.CODE, MODES)


@dataclass(frozen=True)
class Answered:
    status: int
    head: bytes
    size: int
    begin: bytes  # of the body
    end: bytes

    @property
    def is_whole(self) -> bool:
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", self.head)
        if length is not None:
            return self.size == int(length[1])
        return b"chunked" not in self.head.lower() or self.end.endswith(b"0\r\n\r\n")


class Memory(Beside):
    """The most that the server held while the block lasts, in kB beyond what it had before."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__()
        self._server = server
        self._before = self._look()
        self.grew = 0

    def _look(self) -> int:
        return resident_kb(family(self._server.pid))

    def run(self) -> None:
        while not self._enough.wait(0.05):
            self.grew = max(self.grew, self._look() - self._before)


class Client:
    """A connection for each request, which ends with its answer."""

    def __init__(self, server: RunningServer) -> None:
        host, _, port = server.public.removeprefix("http://").rpartition(":")
        self._where = (host, int(port))

    async def ask(self, path: str, *, slowly: bool = False) -> Answered:
        """Raises TimeoutError where the server does not come to an end."""
        reader, writer = await asyncio.open_connection(*self._where, limit=65_536)
        try:
            writer.write(f"GET /function/raw/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            async with asyncio.timeout(DEADLINE):
                return await self._read(reader, slowly)
        finally:
            writer.transport.abort()

    @staticmethod
    async def _read(reader: asyncio.StreamReader, slowly: bool) -> Answered:
        data, size, end = b"", 0, b""
        try:
            while piece := await reader.read(65_536):
                data = data + piece if len(data) < 65_536 else data
                size += len(piece)
                end = (end + piece)[-16:]
                if slowly:
                    await asyncio.sleep(READ_PAUSE)
        except ConnectionError:
            pass
        head, _, body = data.partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 0
        return Answered(status, head, size - len(head) - 4, body[:2000], end)


@pytest.fixture(scope="module")
def raw(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("raw")
    server.push_code(tmp_path_factory.mktemp("calm"), "calm", GOOD + "# beside raw answers\n", GOOD_TOML)
    (folder / "app.py").write_text(hostile_http.CODE)
    (folder / "faas.toml").write_text(TOML)
    server.faas("push", folder)
    client = Client(server)
    asyncio.run(expected(client, "words", 0))  # warm
    yield client
    for name in ("calm", "raw"):
        server.faas("rm", name, "--yes")


async def expected(client: Client, mode: str, number: int) -> str:
    """What is wrong with what comes, "" where nothing is. A good request goes behind it."""
    mark = f"mark{number}z"
    answered = await client.ask(f"{mode}/{mark}", slowly=mode in MODES["ENDLESS"])
    if mode == "late-second":  # beyond that nobody could tell it from the answer to what is asked next
        await asyncio.sleep(LATE_SECONDS)
    good = await client.ask(f"good/good-{mark}")
    if (good.status, good.begin) != (200, f"good-{mark}".encode()):
        return f"{mode}: a good one behind it was answered {good}"
    if mode in MODES["REFUSED"]:
        right = answered.status == 502
    elif mode in ("second", "late-second", "over"):
        right = answered.status == 502 or (answered.status, answered.begin) == (200, mark.encode())
    else:
        right = answered.status in (502, 504) or (answered.status == 200 and not answered.is_whole)
    if mode == "endless-body":  # its end is the connection's, which nobody can tell from a cut but by a reset
        right = answered.status in (200, 504)
    return "" if right else f"{mode}: {answered}"


async def rounds(client: Client) -> list[str]:
    at_once = [*MODES["REFUSED"], *MODES["CUT"], "second", "over"]
    wrong: list[str] = []
    for turn in range(ROUNDS):
        for modes in (at_once, ["late-second"], MODES["ENDLESS"]):  # these take their instance with them
            found = await asyncio.gather(*(expected(client, mode, turn * 100 + n) for n, mode in enumerate(modes)))
            wrong += [one for one in found if one]
    return wrong


def added(server: RunningServer, since: int) -> bytes:
    """What the log has more."""
    with server.log_file.open("rb") as file:
        file.seek(since)
        return file.read()


def test_what_is_no_answer_is_a_502_or_cut_costs_little_memory_and_touches_nobody_else(
    raw: Client, server: RunningServer
) -> None:
    since = server.log_file.stat().st_size
    with Steady(server.public, "/function/calm") as steady, Memory(server) as memory:
        wrong = asyncio.run(rounds(raw))
    log = added(server, since)
    print(f"{ROUNDS} rounds; {memory.grew} kB more at most; a neighbour's p99 {steady.p99_ms():.1f} ms", end=" ")
    print(f"of {len(steady.taken)} calls; {log.count(bytes([10]))} lines of log")
    assert wrong == []
    assert steady.lost == []
    assert memory.grew <= MOST_KB
    assert b"Traceback" not in log


def marks(data: bytes) -> set[bytes]:
    return set(re.findall(rb"mark\d+z|SMUGGLED", data))


async def mutated(client: Client, seed: int) -> tuple[Counter[int], list[str]]:
    chance, places = random.Random(seed), asyncio.Semaphore(AT_ONCE)
    counted: Counter[int] = Counter()
    wrong: list[str] = []

    async def one(number: int) -> None:
        mark, is_good = f"mark{number}z", number % 10 == 0
        path = f"good/{mark}" if is_good else f"mutated/{seeds[number]}/{mark}"
        async with places:
            answered = await client.ask(path)
        counted[answered.status] += 1
        own = MODES["mutated"](seeds[number], mark.encode()) + mark.encode()
        if is_good and (answered.status, answered.begin) != (200, mark.encode()):
            wrong.append(f"a good one: {answered}")
        elif not marks(answered.begin) <= marks(own) or b"our fault" in answered.begin or answered.status == 0:
            wrong.append(f"{path}: {answered}")

    seeds = [chance.randrange(2**32) for _ in range(MUTATED)]
    async with asyncio.TaskGroup() as group:
        for number in range(MUTATED):
            group.create_task(one(number))
    return counted, wrong


def test_mutated_answers_reach_none_but_who_asked_for_them(raw: Client, server: RunningServer) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    since, began = server.log_file.stat().st_size, time.monotonic()
    with Steady(server.public, "/function/calm") as steady, Memory(server) as memory:
        counted, wrong = asyncio.run(mutated(raw, seed))
    log = added(server, since)
    print(f"{MUTATED} in {time.monotonic() - began:.0f} s: {dict(sorted(counted.items()))};", end=" ")
    print(f"{memory.grew} kB more at most; {log.count(bytes([10]))} lines of log;", end=" ")
    print(f"a neighbour's p99 {steady.p99_ms():.1f} ms")
    assert wrong == []
    assert steady.lost == []
    assert memory.grew <= MOST_KB
    assert b"Traceback" not in log
    assert log.count(b"\n") <= MUTATED + OTHER_LINES
