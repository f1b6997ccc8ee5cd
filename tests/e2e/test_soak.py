"""Calls without end, with churn: deploys, errors, crashes, asynchronous ones, instances that go and come. What the
server and the machine hold stays what it was."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.support.leftovers import none_left
from tests.support.server import RunningServer
from tests.support.standing import Standing, family, standing

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(3600 if SOAK else 300)]

CALLS = 200_000 if SOAK else 4000
PHASES = 20 if SOAK else 4
WARM_PHASES = PHASES // 4  # until caches and pools have what they keep
CLIENTS = 8
FUNCTIONS, MOST = 4, 4  # instances of each
TOML = f"memory = 512\nqueue_timeout = 60\ninit_timeout = 60\n[scale]\nmax = {MOST}"
RAISING, CRASHING, STORED = 100, 1000, 100  # one call in so many
SCALED = 500  # calls of a client between two scalings to zero
QUIET_SECONDS = 60.0
KB_PER_CALL = 0.02  # of memory that may stay: 2 MB per 100,000
NOISE_KB = 16_384
CODE = """
import os

VERSION = {version}

def handler(event, context):
    path = event["rawPath"]
    if path.endswith("raise"):
        raise ValueError(path)
    if path.endswith("crash"):
        os._exit(3)
    print("called", path)
    return {{"statusCode": 200, "body": path}}
"""


class Client:
    """One kept connection; asks for what chance says, and counts what came otherwise than it should."""

    def __init__(self, server: RunningServer, dice: random.Random) -> None:
        self._server = server
        self._dice = dice
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, calls: int) -> None:
        host, port = self._server.public.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in range(calls):
            function = f"soak-{self._dice.randrange(FUNCTIONS)}"
            method, path, expected = self._chosen(f"/{number}")
            writer.write(f"{method} {path.format(function)} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            status, body = await answer(reader)
            self.answers[str(status)] += 1
            if status != expected or (status == 200 and body != f"/{number}".encode()):
                self.wrong.append(f"{path.format(function)}: {status} {body[:200]!r}")
            if number % SCALED == SCALED - 1:
                await asyncio.to_thread(scaled, self._server, function, 0)
        writer.close()

    def _chosen(self, mark: str) -> tuple[str, str, int]:
        if not self._dice.randrange(CRASHING):
            return "GET", f"/function/{{}}{mark}-crash", 502
        if not self._dice.randrange(RAISING):
            return "GET", f"/function/{{}}{mark}-raise", 502
        if not self._dice.randrange(STORED):
            return "POST", f"/async-function/{{}}{mark}", 202
        return "GET", f"/function/{{}}{mark}", 200


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
    return int(head.split()[1]), await reader.readexactly(length)


def scaled(server: RunningServer, function: str, instances: int) -> None:
    body = json.dumps({"instances": instances}).encode()
    server.request("POST", f"/v1/functions/{function}/scale", body, {"Content-Type": "application/json"}, api=True)


def sample(server: RunningServer, like: Standing | None) -> Standing:
    """With no instance left, and pools filled again: as soon as it is as `like`, at the latest after a while."""
    marks = (server.id, str(server.data))
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        for number in range(FUNCTIONS):
            scaled(server, f"soak-{number}", 0)
        time.sleep(1.5)
        now = standing(family(server.pid), *marks)
        if like is None or not now.beyond(like) or time.monotonic() > deadline:
            return now


async def phase(server: RunningServer, clients: list[Client], calls: int) -> None:
    await asyncio.gather(*(client.run(calls // len(clients)) for client in clients))


def test_figures_stay_flat_over_many_calls_with_churn(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    server = RunningServer(tmp_path / "data", "--driver", "oci", whole=True)
    samples: list[Standing] = []
    with none_left(server.id, str(server.data)), server:
        for number in range(FUNCTIONS):
            push(server, tmp_path, number, 0)
        clients = [Client(server, random.Random(f"{seed} {number}")) for number in range(CLIENTS)]
        for number in range(PHASES):
            asyncio.run(phase(server, clients, CALLS // PHASES))
            push(server, tmp_path, dice.randrange(FUNCTIONS), number + 1)
            like = samples[WARM_PHASES - 1] if number >= WARM_PHASES else None
            samples.append(sample(server, like))
            print(f"after {(number + 1) * CALLS // PHASES} calls: {samples[-1]}")
        pending = server.get("/v1/dead-letters", api=True)
    wrong = [line for client in clients for line in client.wrong]
    print(*wrong[:20], sep="\n")
    counted = sum((client.answers for client in clients), Counter[str]())
    warm, last = samples[WARM_PHASES - 1 : -2], samples[-2:]
    grown = statistics.median(s.resident_kb for s in last) - min(s.resident_kb for s in warm)
    print(f"{counted}; resident memory grew by {grown:.0f} kB after warm-up; dead letters {pending.status}")
    assert wrong == []
    assert {kind: figure for s in last for kind, figure in s.beyond(samples[WARM_PHASES - 1]).items()} == {}
    assert max(s.views for s in last) <= FUNCTIONS * MOST * 2
    assert max(s.owners for s in last) <= FUNCTIONS * MOST * 2  # one for each that may be there at once
    assert grown < NOISE_KB + CALLS * KB_PER_CALL


def push(server: RunningServer, folder: Path, number: int, version: int) -> None:
    server.push_code(folder, f"soak-{number}", CODE.format(version=version), TOML)
