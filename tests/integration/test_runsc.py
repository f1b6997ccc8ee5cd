"""gVisor's runtime program under the oci driver: what holds there as it does with runc."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.errors import ImageUnusable
from faas.spec import Network
from tests.support.leftovers import none_left
from tests.support.processes import zombies
from tests.support.sandboxes import MB, Workbench, workbench
from worker.drivers.base import Exit

pytestmark = [
    pytest.mark.root,
    pytest.mark.oci,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed"),
]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    async with workbench(tmp_path, kind="oci-runsc") as made:
        yield made


async def test_it_runs_to_its_exit_status_under_another_kernel(bench: Workbench) -> None:
    for status in (0, 7):
        outcome, text = await bench.run("env", "GREETING", "cat", "/proc/version", "exit", str(status))
        assert outcome == Exit(status)
        assert text.startswith("hello\nLinux version 4.")  # gVisor's own
    assert os.uname().release not in text


async def test_the_runtime_api_is_reached_inside(bench: Workbench) -> None:
    sandbox = await bench.driver.create(bench.spec("patience", "15", "tcp", "127.0.0.1", "9001"))
    listener = await sandbox.listen(9001)
    await bench.driver.start(sandbox)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(20):
        peer, _ = await loop.sock_accept(listener)
        with peer:
            assert await loop.sock_recv(peer, 100) == b"hello"
            await loop.sock_sendall(peer, b"welcome")
        assert await sandbox.stdout.read() == b"answer welcome\n"
    await bench.driver.delete(sandbox.id)


async def test_a_port_of_the_function_is_reached_from_outside(bench: Workbench) -> None:
    async with bench.running("serve", "8080", network=Network.OUTBOUND) as sandbox, asyncio.timeout(20):
        assert await sandbox.stdout.readline() == b"listening\n"
        with await sandbox.connect(8080) as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 100) == b"hello"


async def test_dangerous_calls_are_refused(bench: Workbench) -> None:
    answers = await bench.table("calls")
    assert {name for name, answer in answers.items() if answer == "allowed"} == set()


async def test_over_the_memory_limit_it_is_killed_and_that_is_proved(bench: Workbench) -> None:
    outcome, text = await bench.run("eat", "400", memory_bytes=96 * MB)
    assert outcome.out_of_memory
    assert "eaten" not in text


async def test_disk_and_cpu_have_their_limits(bench: Workbench) -> None:
    _, text = await bench.run("fill", "/tmp/full", "1000", tmp_bytes=64 * MB)
    error, size = text.split()
    assert error == "ENOSPC"
    assert 48 * MB < int(size) <= 64 * MB
    async with bench.running("spin", cpus=0.2) as sandbox:
        await asyncio.sleep(1)
        began, first = time.monotonic(), bench.driver.stats(sandbox).cpu_seconds
        await asyncio.sleep(1.5)
        assert bench.driver.stats(sandbox).cpu_seconds - first < 0.2 * (time.monotonic() - began) * 1.6


async def test_more_tasks_than_the_limit_are_never_there(bench: Workbench) -> None:
    async with bench.running("forks", "wait", pids=96, memory_bytes=256 * MB) as sandbox:
        for _ in range(20):
            assert bench.driver.stats(sandbox).pids <= 96
            await asyncio.sleep(0.05)


async def test_killing_and_deleting_leave_nothing(tmp_path: Path) -> None:
    server_id = secrets.token_hex(4)
    with none_left(server_id):
        async with workbench(tmp_path, server_id, "oci-runsc") as bench:
            for _ in range(2):
                async with bench.running("tasks", "8", "wait") as sandbox:
                    await asyncio.wait_for(sandbox.stdout.readuntil(b"waiting\n"), 20)
                    await asyncio.wait_for(bench.driver.kill(sandbox), 10)
                    assert sandbox.exited.result().signal == 9
            with pytest.raises(ImageUnusable, match="not in the image"):
                await bench.run("x", args=("/bin/nowhere",))
        assert _zombies() == []


def _zombies() -> list[str]:
    """What runsc leaves for us to bury."""
    return [row for row in zombies(os.getpid()) if "runsc" in row or "(exe)" in row]
