"""Thousands of starts and stops leave nothing: no mount, namespace, group, folder, descriptor, thread, memory; and what
a crash leaves in the middle of them is gone at the next start."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from faas.errors import FaasError
from faas.leases import Invocation, Trigger
from faas.protocol import (
    Revision,
)
from tests.conftest import SOAK
from tests.support.leftovers import LOOSENED_SECONDS, none_left, on_this_machine
from tests.support.server import RunningServer
from tests.support.standing import Standing, own_standing
from tests.support.stem_functions import Bases, World

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(3600 if SOAK else 240)]

STARTS = 10_000 if SOAK else 120
WARM_STARTS = 40  # until caches, pools and the interpreter have what they keep
STEM_STARTS = STARTS // 4  # each waits until there is one
FUNCTIONS = 6  # at once; from stems one after the other
VIEWS_AHEAD = 8
OWNERS = 32  # those that run, those that are made ahead, and those that wait for their end on a busy machine
QUIET_SECONDS = 30.0
KB_PER_START = 2.0  # of memory that may stay: what is below is noise of the allocator
NOISE_KB = 16_384
CRASHES = 20 if SOAK else 3
PATIENT = {"init_timeout": 60, "timeout": 60}  # in so many starts one waits long where others are at work too
APP = b"""
import os

def handler(event, context):
    if event.get("exit"):
        os._exit(1)
    return event
"""
ECHO = """
import os

def handler(event, context):
    return {"statusCode": 200, "body": event["rawPath"]}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases.build("python", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def image(bases: Bases) -> str:
    return bases.function({"var": None, "var/task": None, "var/task/app.py": APP})


async def start_and_stop(world: World, revision: Revision, number: int, stems: int) -> str:
    """One start, one event, one end: told to go, or by itself. How it started."""
    if stems:
        await world.until(lambda: world.ready() > 0)
    await world.pool.scale(revision, 1)
    path = ""
    event = json.dumps({"exit": number % 10 == 9}).encode()
    try:
        async with world.pool.acquire(revision, Invocation(secrets.token_hex(4), Trigger.HTTP, 120)) as lease:
            path = lease.cold_start.path if lease.cold_start else ""
            await lease.invoke(event)
    except FaasError:
        assert number % 10 == 9
    await world.pool.scale(revision, 0)
    while world.pool.instances(revision.key):  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.002)
    return path


async def churn(world: World, revisions: list[Revision], starts: int, stems: int) -> list[str]:
    numbers = iter(range(starts))

    async def one_after_the_other(revision: Revision) -> list[str]:
        return [await start_and_stop(world, revision, number, stems) for number in numbers]

    return [path for paths in await asyncio.gather(*map(one_after_the_other, revisions)) for path in paths]


async def quiet(world: World, marks: tuple[str, ...], like: Standing | None = None) -> Standing:
    """When pools are filled again and removals are over: as `like`, else when it stands still."""
    deadline = time.monotonic() + QUIET_SECONDS
    before = own_standing(*marks)
    while True:
        await asyncio.sleep(1.0)
        now = own_standing(*marks)
        if not now.beyond(like or before) and (like or not before.beyond(now)):
            return now
        if time.monotonic() > deadline:
            assert like is None, now.beyond(like)
        before = now


@pytest.mark.parametrize("stems", [0, 2])
async def test_starts_and_stops_leave_nothing_behind(bases: Bases, image: str, tmp_path: Path, stems: int) -> None:
    starts = STEM_STARTS if stems else STARTS
    own = replace(bases, data=tmp_path / "data", server_id=secrets.token_hex(4))
    marks = (own.server_id, str(own.data))
    with none_left(*marks):
        world = World(own, tmp_path / "logs", stems=stems)
        await world.pool.open()
        try:
            revisions = [world.revision(image, **PATIENT) for _ in range(1 if stems else FUNCTIONS)]
            if stems:
                await world.warmed(image)
            await churn(world, revisions, WARM_STARTS, stems)
            before = await quiet(world, marks)
            began = time.monotonic()
            paths = await churn(world, revisions, starts, stems)
            took = time.monotonic() - began
            after = await quiet(world, marks, before)
        finally:
            await world.pool.close(1)
    ways = {path: paths.count(path) for path in set(paths)}
    print(f"{starts} starts in {took:.0f} s, {ways}: {before} → {after}")
    assert ways == {"stem" if stems else "cold": starts}
    assert after.resident_kb - before.resident_kb < NOISE_KB + starts * KB_PER_START
    assert after.views <= VIEWS_AHEAD
    assert after.owners <= OWNERS
    assert list((own.data / "scratch").iterdir()) == []


def test_a_server_that_is_killed_again_and_again_sweeps_each_time_what_it_left(tmp_path: Path) -> None:
    """While functions start, answer and stop. What the next start finds of the one before is all gone."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    server = RunningServer(tmp_path / "data", "--driver", "oci")
    names = [f"echo-{number}" for number in range(3)]
    enough = threading.Event()

    def call(name: str) -> None:
        number = 0
        while not enough.is_set():
            number += 1
            try:
                server.get(f"/function/{name}/{number}", timeout=5)
                body = json.dumps({"instances": number % 2 * 2}).encode()
                server.request("POST", f"/v1/functions/{name}/scale", body, api=True, timeout=5)
            except Exception:
                continue  # the server is being killed: what this client sees of it is not the point

    left: list[int] = []
    with none_left(server.id, str(server.data)):
        server.start()
        try:
            for name in names:
                server.push_code(tmp_path, name, ECHO, "memory = 512\n[scale]\nmax = 2")
            clients = [threading.Thread(target=call, args=(name,)) for name in names]
            for client in clients:
                client.start()
            for _ in range(CRASHES):
                time.sleep(dice.uniform(0.1, 2.0))
                server.kill()
                before = things(server)
                left.append(sum(map(len, before.values())))
                server.start()
                deadline = time.monotonic() + LOOSENED_SECONDS  # a link goes in the kernel's own time
                while any(remaining := remaining_of(server, before)):
                    assert time.monotonic() < deadline, remaining
                    time.sleep(0.1)
        finally:
            enough.set()
            for client in clients:
                client.join()
            server.stop()
    print(f"left by {CRASHES} crashes: {left}")
    assert sum(left) > CRASHES


def remaining_of(server: RunningServer, before: dict[str, set[str]]) -> list[set[str]]:
    now = things(server)
    return [found & now[kind] for kind, found in before.items()]


def things(server: RunningServer) -> dict[str, set[str]]:
    """What of it has a name of its own: the firewall's table, the folder in /run and what is numbered there have the
    same one each time. A link is known by its number, since each server begins their names anew."""
    found = on_this_machine()
    del found["nft tables"]
    mine = {kind: {row for row in rows if server.id in row or str(server.data) in row} for kind, rows in found.items()}
    mine["interfaces"] = {f"{index} {name}" for index, name in socket.if_nameindex() if server.id in name}
    mine["mounts"] = {row for row in mine["mounts"] if f"{server.id}/" in row and "/ids/" not in row}
    return mine
