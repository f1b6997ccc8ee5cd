"""`LaunchedDriver` before a launcher that is played here: what it makes of answers and events that come together."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from faas.errors import Conflict
from faas.metrics import Metrics
from faas.oci.manifest import ImageConfig
from tests.support.images import MemoryImages
from worker.drivers.base import Exit, PreparedImage, SandboxSpec, SandboxState
from worker.launcher import wire
from worker.launcher.client import LaunchedDriver
from worker.launcher.peer import Answer, Peer

IMAGE = PreparedImage("hello@sha256:" + "0" * 64, ImageConfig("amd64"), None)
SPEC = SandboxSpec("a1", IMAGE, ("/bin/true",), {}, "/", 32 << 20, 1.0, 0)


class Played:
    """Stands for a launcher's process, at whose end `peer` is."""

    def __init__(self) -> None:
        self.ours, theirs = wire.pair()
        self.heard: list[str] = []
        self.ends = False
        self.pipes: list[int] = []
        verbs = dict.fromkeys(("open", "close", "start", "set_cpus"), self.plain)
        self.peer = Peer(theirs, {**verbs, "create": self.create}, lambda _: None)

    def take(self) -> socket.socket:
        return self.ours

    def wait(self) -> None:
        pass

    def plain(self, message: wire.Message, _: list[int]) -> Answer:
        self.heard.append(message["verb"])
        return Answer()

    def create(self, message: wire.Message, __: list[int]) -> Answer:
        """A stem, which may end in the same moment."""
        self.heard.append("create")
        if self.ends:
            asyncio.get_running_loop().call_soon(self.end, message["id"])
        given = [socket.create_server(("127.0.0.1", 0)).detach()]
        for _ in range(2):
            reading, writing = os.pipe()
            self.pipes.append(writing)
            given.append(reading)
        return Answer({"path": "stem", "group": "/none", "under_way": message["at_once"]}, given)

    def end(self, sandbox_id: str) -> None:
        self.peer.tell("exited", id=sandbox_id, code=1, signal=0, out_of_memory=False)


@pytest.fixture
async def launcher() -> AsyncIterator[Played]:
    played = Played()
    yield played
    await played.peer.close()
    wire.close_all(played.pipes)


@pytest.fixture
async def driver(launcher: Played) -> AsyncIterator[LaunchedDriver]:
    made: Any = launcher
    driver = LaunchedDriver(made, MemoryImages(), Metrics(""), lambda: None)
    await driver.open()
    yield driver
    await driver.close()


async def test_one_that_ended_before_its_caller_heard_of_it_has_ended(driver: LaunchedDriver, launcher: Played) -> None:
    launcher.ends = True
    sandbox = await driver.create(SPEC, at_once=True)  # both packets are there before either is read
    async with asyncio.timeout(5):
        assert await sandbox.exited == Exit(1)
    assert driver.state(sandbox) is SandboxState.STOPPED


async def test_what_is_under_way_already_costs_no_message_to_start(driver: LaunchedDriver, launcher: Played) -> None:
    sandbox = await driver.create(SPEC, at_once=True)
    await driver.start(sandbox)
    await driver.set_cpus(sandbox, 0.5)
    other = await driver.create(replace(SPEC, id="b2"))
    await driver.start(other)
    await driver._peer.ask("open")  # what was asked before it has been heard
    assert launcher.heard == ["open", "create", "set_cpus", "create", "start", "open"]
    with pytest.raises(Conflict):
        sandbox.take_terminal()
