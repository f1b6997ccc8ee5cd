"""Mutated requests to a real server: it answers or closes each, nobody gets another one's answer, and it stays as it
was. The same bytes to both ways, compared: tests/unit/test_lane_fuzz.py."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from faas.web import HEAD_SECONDS, PROGRESS_SECONDS
from tests.conftest import SOAK
from tests.support.mutations import Asked, asked
from tests.support.server import RunningServer
from tests.support.standing import family, resident_kb

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(3600 if SOAK else 120)]

COUNT = 100_000 if SOAK else 1500
AT_ONCE = 100
QUIET_SECONDS = 0.3  # without another byte; then we end our side
CLOSE_SECONDS = 15.0  # for the server to end its side then
GOOD_SECONDS = 30.0  # for what must be answered
PATIENT = 2000  # one in so many does not end its side: the server must
PATIENT_SECONDS = 2 * HEAD_SECONDS + PROGRESS_SECONDS + 15
GROWTH = 0.05
NOISE_KB = 16_384  # of a server that has other things to do as well, in the few seconds of the short form
OTHER_LINES = 100  # of the log, which are not about bad requests: instances come
HELLO = """
def handler(event, context):
    return {"statusCode": 200, "body": event["rawPath"]}
"""
WEB = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    body = scope["path"].encode("utf-8", "surrogateescape")
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""


@dataclass
class Seen:
    """What came of all of them."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    good: int = 0


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)


def marks(data: bytes) -> list[bytes]:
    """As they are written, and as they are read where a mutation has encoded some of it."""
    return re.findall(rb"mark\d+(?:-\d+)?z|smuggledz", data + b" " + unquote_to_bytes(data))


class Crowd:
    """`AT_ONCE` clients, each with a connection for each request."""

    def __init__(self, server: RunningServer, chance: random.Random) -> None:
        host, _, port = server.public.removeprefix("http://").rpartition(":")
        self._where = (host, int(port))
        self._chance = chance
        self._numbers = iter(range(COUNT))
        self._places = asyncio.Semaphore(AT_ONCE)
        self._patient: list[asyncio.Task[None]] = []
        self.seen = Seen()

    async def run(self, count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                await self._places.acquire()
                number = next(self._numbers)
                one = asked(self._chance, number)
                if SOAK and number % PATIENT == 1:
                    self._patient.append(asyncio.create_task(self._ask(number, one, PATIENT_SECONDS)))
                    self._places.release()
                    continue
                group.create_task(self._ask(number, one)).add_done_callback(lambda _: self._places.release())

    async def finish(self) -> None:
        await asyncio.gather(*self._patient)

    async def _ask(self, number: int, one: Asked, quiet_seconds: float = QUIET_SECONDS) -> None:
        local = (f"127.{number % 200 + 1}.0.1", 0)  # ports of one address would run out
        reader, writer = await asyncio.open_connection(*self._where, local_addr=local)
        answer, ended = bytearray(), False
        try:
            sending = asyncio.create_task(send(writer, one))
            sure = one.good or one.is_one_refusal
            ended = await self._read(reader, answer, GOOD_SECONDS if sure else quiet_seconds)
            await sending
            if not ended and quiet_seconds == QUIET_SECONDS:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                ended = await self._read(reader, answer, CLOSE_SECONDS)
        finally:
            writer.transport.abort()
        self._judge(one, bytes(answer), ended, is_patient=quiet_seconds > QUIET_SECONDS)

    @staticmethod
    async def _read(reader: asyncio.StreamReader, answer: bytearray, quiet_seconds: float) -> bool:
        """Whether the server ended it, before it was quiet for so long."""
        try:
            while True:
                async with asyncio.timeout(quiet_seconds):
                    data = await reader.read(65_536)
                if not data:
                    return True
                answer += data
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def _judge(self, one: Asked, answer: bytes, ended: bool, *, is_patient: bool) -> None:
        """`is_patient`: where its body does not come whole, its function may have waited for that as long as it may."""
        found = statuses(answer)
        self.seen.statuses.update(status.decode() for status in found or [b"none"])
        fault = ""
        if not ended:
            fault = "it was neither answered to its end nor closed"
        elif any(status.startswith(b"5") for status in found) and not (is_patient and found == [b"504"]):
            fault = "a fault of ours"
        elif not set(marks(answer)) <= set(marks(one.request)):
            fault = "another one's answer"
        elif one.is_one_refusal and (len(found) != 1 or not b"400" <= found[0] < b"500"):
            fault = "it may be read as two requests, and was not refused once"
        elif one.good:
            self.seen.good += 1
            bodies = [mark for mark in marks(answer) if mark in one.marks]
            if found != [b"200"] * one.good or list(dict.fromkeys(bodies)) != list(one.marks):
                fault = "a good one did not succeed"
        if fault and len(self.seen.wrong) < 20:
            self.seen.wrong.append(f"{fault}: {one.request[:600]!r} … {found} {answer[:300]!r}")


async def send(writer: asyncio.StreamWriter, one: Asked) -> None:
    with contextlib.suppress(ConnectionError):
        for place, piece in enumerate(one.pieces):
            if place:
                await asyncio.sleep(one.pause)
            writer.write(piece)
            await writer.drain()


def added(server: RunningServer, since: int) -> bytes:
    """What the log has more."""
    with server.log_file.open("rb") as file:
        file.seek(since)
        return file.read()


async def flood(server: RunningServer, chance: random.Random) -> tuple[Seen, list[int]]:
    """What was seen; kB of memory after each tenth, and at the end."""
    crowd, memory = Crowd(server, chance), []
    for _ in range(10):
        await crowd.run(COUNT // 10)
        memory.append(resident_kb(family(server.pid)))
    await crowd.finish()
    await asyncio.sleep(1)
    return crowd.seen, [*memory, resident_kb(family(server.pid))]


def test_mutated_requests_are_answered_or_closed_and_leave_the_server_as_it_was(
    server: RunningServer, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    server.push_code(tmp_path, "hello", HELLO, "[scale]\nmin = 2\nmax = 4")
    web = tmp_path / "web"
    web.mkdir()
    (web / "main.py").write_text(WEB)
    rules = "concurrency = 100\n[scale]\nmin = 1\nmax = 2\n"
    (web / "faas.toml").write_text(f'name = "web"\nruntime = "python"\napp = "main:app"\npublic = true\n{rules}')
    server.faas("push", web)
    since = server.log_file.stat().st_size
    began = time.monotonic()
    try:
        seen, memory = asyncio.run(flood(server, random.Random(seed)))
    finally:
        seconds = time.monotonic() - began
        for name in ("hello", "web"):
            server.faas("rm", name, "--yes")
    log = added(server, since)
    lines, bad = log.count(b"\n"), COUNT - seen.good
    print(
        f"{COUNT} requests in {seconds:.0f} s, {seen.good} good ones: {dict(sorted(seen.statuses.items()))};", end=" "
    )
    print(f"resident memory {memory} kB; {lines} lines of log for {bad} bad ones")
    assert seen.wrong == []
    assert seen.good == COUNT // 10
    assert b"Traceback" not in log
    assert lines <= bad + OTHER_LINES
    warm, last = max(memory[:3]), min(memory[-3:])  # caches are full by then; some of it only waits to be freed
    assert last - warm <= warm * GROWTH + (0 if SOAK else NOISE_KB)
