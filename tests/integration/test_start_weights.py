"""What starts weighs less on the CPU beside what is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.leftovers import none_left
from tests.support.sandboxes import Workbench, workbench
from worker.drivers.linux.cgroups import CPU_SHARES, is_v2, starting_shares
from worker.drivers.oci.driver import OciDriver

pytestmark = [pytest.mark.root, pytest.mark.oci]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Workbench]:
    server_id = secrets.token_hex(4)
    with none_left(server_id, str(tmp_path)):
        async with workbench(tmp_path, server_id) as made:
            yield made


def shares(bench: Workbench, sandbox_id: str) -> int:
    assert isinstance(bench.driver, OciDriver)
    return int(Path(f"/sys/fs/cgroup/cpu{bench.driver._cgroups.path(sandbox_id)}/cpu.shares").read_text())


@pytest.mark.skipif(
    is_v2(), reason="the v2 runtime writes a weight of another scale; tests/unit/test_cgroups.py has both"
)
async def test_a_burst_shares_one_weight_for_each_core_and_a_single_start_has_all(bench: Workbench) -> None:
    cores = os.cpu_count() or 1
    count = 3 * cores
    async with contextlib.AsyncExitStack() as stack:
        alone = await stack.enter_async_context(bench.running("wait"))
        assert shares(bench, alone.id) == CPU_SHARES
        await bench.driver.set_cpus(alone, 0.1)  # it is ready
        many = [await stack.enter_async_context(bench.running("wait")) for _ in range(count)]
        found = [shares(bench, sandbox.id) for sandbox in many]
        assert found == [starting_shares(number, cores) for number in range(1, count + 1)]
        assert found[-1] * count <= CPU_SHARES * cores
        await asyncio.gather(*(bench.driver.set_cpus(sandbox, 0.1) for sandbox in many))
        assert {shares(bench, sandbox.id) for sandbox in (alone, *many)} == {CPU_SHARES}
