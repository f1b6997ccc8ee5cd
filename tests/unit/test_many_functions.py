"""Hundreds of functions with many versions and aliases each: every list of them is whole, small and soon there."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.support.control import Control, control

FUNCTIONS, VERSIONS = (200, 10) if SOAK else (30, 4)  # an alias leads to each: it is kept
BYTES_EACH = 8192  # of memory, of a version; its whole faas.toml is held


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def made(server: Control, name: str) -> None:
    for number in range(1, VERSIONS + 1):
        await server.deploy(name, env={"N": str(number)})
        path = f"/v1/functions/{name}/aliases/a{number}"
        answered = await server.call("PUT", path, {"revision": number})
        assert answered.status == 200, answered.body


@pytest.mark.timeout(600)
async def test_many_functions_with_many_versions_are_listed_whole_and_cost_little_memory(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy("warm-up")
        gc.collect()
        before = resident_bytes()
        for first in range(0, FUNCTIONS, 10):
            await asyncio.gather(*(made(server, f"f{n}") for n in range(first, min(first + 10, FUNCTIONS))))
        grew = resident_bytes() - before
        listed = await server.call("GET", "/v1/functions")
        assert len(listed.json()["functions"]) == FUNCTIONS + 1
        assert len(listed.body) < 2048 * (FUNCTIONS + 1), "a list tells of functions, not of their versions"
        revisions = await server.call("GET", "/v1/functions/f7/revisions")
        assert len(revisions.json()["revisions"]) == VERSIONS
        assert (await server.call("GET", "/function/f7", public=True)).status == 200
        assert grew < BYTES_EACH * FUNCTIONS * VERSIONS + 32 * 1_048_576
