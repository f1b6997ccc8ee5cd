"""Idle instances stand still: on real sandboxes, whatever a function does between its answer and the next event."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faas.build.recipe import recipe
from faas.errors import TimedOut
from faas.leases import HttpRequest, Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    LogQuery,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support import patience
from tests.support.fake_driver import eventually
from tests.support.images import MemoryImages, tar_of
from tests.support.leftovers import on_this_machine, sandboxed
from tests.support.stem_functions import base_layers
from worker.drivers.base import DriverPaths
from worker.drivers.oci import sandbox_groups
from worker.drivers.oci.driver import OciDriver
from worker.instance import Instance
from worker.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.oci]

MB = 1_048_576
HANDLER = b"""
import os, threading, time

count = 0

def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)

def handler(event, context):
    before = count
    mode = event.get("mode")
    if mode == "count":
        threading.Thread(target=work, daemon=True).start()
        while count <= 10:
            time.sleep(0.001)
    if mode == "go on":
        while count == before:
            time.sleep(0.001)
    if mode == "hold":
        global kept
        kept = bytearray(b"1") * (event["mb"] << 20)
    if mode == "family":
        ready, go = os.pipe()
        for _ in range(event["children"]):
            if os.fork() == 0:
                os.close(go)
                os.read(ready, 1)  # until all are born: who works already has the others wait
                os.setsid()
                while True:
                    os.urandom(64)
        os.close(go)
    if mode == "print":
        for n in range(event["lines"]):
            print("line", n)
    if mode == "loop":
        while True:
            pass
    time.sleep(event.get("seconds", 0))
    return [before, count]
"""
SERVER = b"""
import os, socket, threading, time

count = 0

def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)

threading.Thread(target=work, daemon=True).start()
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    connection, _ = listener.accept()
    connection.recv(65536)
    body = str(count).encode()
    head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
    connection.sendall(head + body)
    connection.close()
"""


@dataclass
class Bench:
    images: MemoryImages
    reference: str
    python: str
    data: Path
    server_id: str = field(default_factory=lambda: secrets.token_hex(4))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    images, made = MemoryImages(), recipe("python")
    code = {"var": None, "var/task": None, "var/task/app.py": HANDLER, "var/task/server.py": SERVER}
    tars = [*base_layers("python"), tar_of(code)]
    env = ("PATH=/usr/bin:/bin", "_HANDLER=app.handler")
    reference = images.add("still", tars, entrypoint=made.entrypoint, workdir="/var/task", env=env)
    return Bench(images, reference, made.entrypoint[0], tmp_path_factory.mktemp("data"))


class World:
    def __init__(self, bench: Bench, logs: Path, memory_bytes: int = 2048 * MB) -> None:
        self.bench = bench
        self.driver = OciDriver(DriverPaths(bench.data, bench.server_id), bench.images)
        self.pool = Pool(self.driver, logs, Metrics("test"), memory_bytes=memory_bytes)

    def revision(self, **keys: Any) -> Revision:
        spec = parse(
            {"name": "still", "timeout": int(3 * patience.FACTOR), "network": "none", "ephemeral_storage": 16, **keys}
        )
        interface = Interface.HTTP if "command" in keys else Interface.LAMBDA
        return Revision(RevisionKey("default", spec.name, 1), spec, self.bench.reference, interface)

    async def invoke(self, of: Revision, **event: Any) -> Any:
        if not self.pool.stats(of.key).instances:
            await self.pool.scale(of, 1)
        async with self.pool.acquire(of, Invocation(secrets.token_hex(4), Trigger.HTTP, 20 * patience.FACTOR)) as lease:
            return json.loads((await lease.invoke(json.dumps(event).encode())).payload)

    def one(self, of: Revision) -> Instance:
        (instance,) = self.pool._pools[of.key].every_instance
        return instance

    async def frozen(self, of: Revision) -> Instance:
        instance = self.one(of)
        await eventually(lambda: instance.is_frozen, 15)
        return instance

    def cpu_seconds(self, instance: Instance) -> float:
        assert instance.sandbox is not None
        return self.driver.stats(instance.sandbox).cpu_seconds


@pytest.fixture
async def world(bench: Bench, tmp_path: Path) -> AsyncIterator[World]:
    world = World(bench, tmp_path / "logs")
    await world.pool.open()
    try:
        yield world
    finally:
        await world.pool.close(1)
    left = [name for names in on_this_machine().values() for name in names if bench.server_id in name]
    assert left == []


async def test_a_thread_of_a_function_stands_still_between_invocations_and_goes_on_in_the_next(world: World) -> None:
    still = world.revision()
    await world.invoke(still)  # its start is over
    clock = asyncio.get_running_loop().time
    began = clock()
    _, counted = await world.invoke(still, mode="count")
    assert counted > 10
    instance = await world.frozen(still)
    awake = clock() - began
    await asyncio.sleep(0.02 * patience.FACTOR)  # the last one counts as frozen just before it leaves its CPU
    used = world.cpu_seconds(instance)
    await asyncio.sleep(1)
    assert world.cpu_seconds(instance) == used
    began = clock()
    before, after = await world.invoke(still, mode="go on")
    awake += clock() - began
    assert counted <= before <= counted + 1000 * awake + 50, "a second of work was done unbilled"  # 1 ms each, at least
    assert after > before
    await world.frozen(still)


async def test_a_thread_of_an_http_function_goes_on(world: World) -> None:
    served = world.revision(
        name="served", entrypoint=[world.bench.python, "-I", "-S"], command=["/var/task/server.py"], memory=512
    )

    async def counted() -> int:
        async with world.pool.acquire(served, Invocation("r", Trigger.HTTP, 20 * patience.FACTOR)) as lease:
            response = await lease.request(HttpRequest("GET", "/", (("host", "x"),), None))
            return int(b"".join([piece async for piece in response.body]))

    await world.pool.scale(served, 1)
    for _ in range(20):  # pauses, of which one in which this machine lets it run must do
        first = await counted()
        await asyncio.sleep(0.5 * patience.FACTOR)
        assert not world.one(served).is_frozen
        if goes_on := await counted() > first + 50:
            break
    assert goes_on


async def test_what_is_idle_for_longer_than_its_time_limit_is_no_timeout_and_its_log_is_whole(world: World) -> None:
    limit = int(3 * patience.FACTOR)
    still = world.revision(timeout=limit)
    await world.invoke(still, mode="print", lines=500)
    await world.frozen(still)
    records = [record.message async for record in world.pool.logs(LogQuery("default", "still"))]
    assert [message for message in records if message.startswith("line ")] == [f"line {n}" for n in range(500)]
    await asyncio.sleep(limit + 0.5)
    assert await world.invoke(still) == [0, 0]
    with pytest.raises(TimedOut):
        await world.invoke(still, mode="loop")


async def test_a_frozen_instance_is_charged_what_it_has_and_its_limit_while_it_runs(world: World) -> None:
    still = world.revision(memory=256)
    await world.invoke(still, mode="hold", mb=50)
    instance = await world.frozen(still)
    assert instance.charge is not None
    await eventually(lambda: instance.charge is not None and instance.charge.is_shrunk)
    assert 51 * MB < instance.charge.size < 90 * MB
    assert instance.charge.size >= instance.memory_bytes
    (usage,) = (await world.pool.usage()).revisions
    assert (usage.charged_bytes, usage.stats.idle) == (instance.charge.size, 1)
    running = asyncio.create_task(world.invoke(still, seconds=0.3))
    await eventually(lambda: instance.executing == 1)
    assert instance.charge.size == 256 * MB
    await running
    await eventually(lambda: instance.charge is not None and instance.charge.is_shrunk)


async def test_a_family_of_frozen_processes_dies_at_once_none_of_which_runs_again(world: World) -> None:
    still = world.revision(memory=1769, timeout=int(30 * patience.FACTOR))
    await world.invoke(still, mode="family", children=60)
    instance = await world.frozen(still)
    used = world.cpu_seconds(instance)
    assert len(sandboxed(world.bench.server_id)) > 60
    await world.pool.scale(still, 0)
    await eventually(lambda: not sandboxed(world.bench.server_id), 15)
    assert world.cpu_seconds(instance) <= used + 0.5 * patience.FACTOR  # to die takes some, too
    await eventually(lambda: world.pool.stats(still.key).instances == 0)


async def test_back_to_back_calls_are_never_frozen_and_a_pause_always_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.pool._freezer, "_grace", 0.2 * patience.FACTOR)
    freezes = 0
    freeze = world.driver.freeze

    async def counted(sandbox: Any) -> None:
        nonlocal freezes
        freezes += 1
        await freeze(sandbox)

    monkeypatch.setattr(world.driver, "freeze", counted)
    still = world.revision()
    await world.invoke(still)
    await asyncio.sleep(0.5 * patience.FACTOR)
    assert freezes == 1
    for _ in range(200):
        await world.invoke(still)
    assert freezes <= 2  # 2: this machine stood still for 0.2 s
    await world.frozen(still)


async def test_where_freezing_fails_it_is_just_not_frozen_and_that_is_said_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> bool:
        raise OSError("no freezer here")

    monkeypatch.setattr(world.driver._cgroups, "freeze", refuse)
    first, second = world.revision(), world.revision(name="other")
    for still in (first, second):
        await world.invoke(still, mode="count")
        await eventually(lambda still=still: not world.one(still).can_freeze)  # type: ignore[misc]
        assert (await world.invoke(still))[1] > 0
    assert [r.levelname for r in caplog.records if "is not frozen" in r.message] == ["WARNING"]
    charge = world.one(first).charge
    assert charge is not None
    assert not charge.is_shrunk


async def test_one_that_is_claimed_while_it_is_being_frozen_goes_on_at_once_and_is_frozen_after(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    still, freeze = world.revision(), world.driver._cgroups.freeze
    monkeypatch.setattr(world.driver._cgroups, "freeze", lambda name: freeze(name) and False)  # never there
    await world.invoke(still)
    instance = world.one(still)
    for _ in range(3):
        await eventually(lambda: instance.freezing is not None)
        assert await world.invoke(still) == [0, 0]
    assert instance.can_freeze, "nobody has waited until the freezing was given up"
    monkeypatch.setattr(world.driver._cgroups, "freeze", freeze)
    await world.frozen(still)
    assert await world.invoke(still) == [0, 0]


async def test_one_that_stands_still_by_the_end_of_a_pause_of_the_whole_machine_is_frozen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_groups, "STILL_SECONDS", 0.2)
    looks, freeze = 0, world.driver._cgroups.freeze

    def pause(name: str) -> None:
        time.sleep(0.4)
        until = time.monotonic() + 10
        while not freeze(name) and time.monotonic() < until:
            time.sleep(0.01)

    def at_the_second_look(name: str) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            asyncio.get_running_loop().call_soon(pause, name)
        return freeze(name) and looks > 1

    monkeypatch.setattr(world.driver._cgroups, "freeze", at_the_second_look)
    still = world.revision()
    await world.invoke(still)
    assert (await world.frozen(still)).can_freeze


async def test_one_that_cannot_be_thawed_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    still = world.revision()
    await world.invoke(still)
    broken = await world.frozen(still)
    thaw = world.driver.thaw

    async def refuse(sandbox: Any) -> None:
        if sandbox is broken.sandbox:
            raise OSError("it does not thaw")
        await thaw(sandbox)

    monkeypatch.setattr(world.driver, "thaw", refuse)
    assert await world.invoke(still) == [0, 0]
    assert {*world.pool._pools[still.key].every_instance} - {broken}


async def test_the_server_that_comes_after_a_crash_ends_what_stands_still(bench: Bench, tmp_path: Path) -> None:
    """In a process of its own: a crash ends a server's threads and its descriptors."""
    world = World(bench, tmp_path / "logs")
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(_freeze_and_stay(world))
        finally:
            os._exit(0)
    try:
        await eventually((tmp_path / "frozen").exists, 30)
    finally:
        os.kill(pid, 9)
        await asyncio.to_thread(os.waitpid, pid, 0)
    assert len(sandboxed(bench.server_id)) >= 20
    began = time.monotonic()
    async with asyncio.timeout(20 * patience.FACTOR):
        await world.pool.open()
    took = time.monotonic() - began
    assert sandboxed(bench.server_id) == []
    await world.pool.close(1)
    assert took < 15 * patience.FACTOR


async def _freeze_and_stay(world: World) -> None:
    world = World(world.bench, world.pool._logs._folder)  # its executors are this process's
    await world.pool.open()
    still = world.revision(memory=1024, timeout=int(30 * patience.FACTOR))
    await world.invoke(still, mode="family", children=20)
    await world.frozen(still)
    (world.pool._logs._folder.parent / "frozen").touch()
    await asyncio.sleep(60 * patience.FACTOR)
