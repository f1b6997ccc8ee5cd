"""Hundreds of functions with many versions and aliases each: every list of them is whole, small and soon there."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from pathlib import Path

import pytest
from sqlalchemy import insert

from faas.spec import parse
from faas.state import tables
from faas.state.session import Database
from gateway.deploy import KEPT_REVISIONS
from tests.conftest import SOAK
from tests.support.control import DIGEST, Control, control
from tests.support.steady import percentile

FUNCTIONS, VERSIONS = (200, 10) if SOAK else (30, 4)  # an alias leads to each: it is kept
BYTES_EACH = 8192  # of memory, of a version; its whole faas.toml is held
STORED, STORED_VERSIONS, STORED_ALIASES = (1000, 100, 50) if SOAK else (60, 20, 10)
MOST_BYTES = 500_000_000
LISTS = 100 if SOAK else 10


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


async def stored(folder: Path) -> None:
    """What so many deploys would leave, as rows: `live` is the newest version, other aliases lead to the oldest."""
    database = await Database.open(f"sqlite+aiosqlite:///{folder / 'faas.db'}")
    async with database.write() as tx:
        for name in (f"f{number}" for number in range(STORED)):
            row = {"namespace": "default", "name": name, "created_at": 1.0, "updated_at": 1.0}
            mine = {"namespace": "default", "function": name}
            spec = parse({"name": name, "public": True}).to_dict()
            await tx.execute(insert(tables.functions), [row])
            await tx.execute(insert(tables.revision_numbers), [{**mine, "last": STORED_VERSIONS}])
            versions = [
                {
                    **mine,
                    "number": number,
                    "image": f"{name}@{DIGEST}",
                    "spec": json.dumps({**spec, "env": {"N": str(number)}}, sort_keys=True),
                    "interface": "lambda",
                    "created_at": float(number),
                    "created_by": "admin",
                }
                for number in range(1, STORED_VERSIONS + 1)
            ]
            await tx.execute(insert(tables.revisions), versions)
            named = [{**mine, "name": f"a{number}", "number": number} for number in range(1, STORED_ALIASES)]
            await tx.execute(insert(tables.aliases), [*named, {**mine, "name": "live", "number": STORED_VERSIONS}])
    await database.close()


async def seconds_of(server: Control, method: str, path: str, body: object = None) -> float:
    began = time.monotonic()
    answered = await server.call(method, path, body)
    assert answered.status in (200, 201), answered.body
    return time.monotonic() - began


@pytest.mark.timeout(600)
async def test_a_server_with_many_versions_starts_lists_deploys_and_keeps_what_aliases_name(tmp_path: Path) -> None:
    await stored(tmp_path)
    gc.collect()
    before, began = resident_bytes(), time.monotonic()
    async with control(tmp_path) as server:
        started, grew = time.monotonic() - began, resident_bytes() - before
        took = [await seconds_of(server, "GET", "/v1/functions") for _ in range(LISTS)]
        first = server.gateway.router.state("default", "f7")
        assert first is not None
        deploy = {"spec": {"name": "f7", "public": True, "env": {"N": "new"}}, "image": f"f7@{DIGEST}"}
        deployed = await seconds_of(server, "PUT", "/v1/functions/f7", deploy)
        again = server.gateway.router.state("default", "f7")
        assert again is not None
        await seconds_of(server, "PUT", "/v1/functions/f7/aliases/a1", {"revision": 2})
        assert len((await server.call("GET", "/v1/functions")).json()["functions"]) == STORED
        began = time.monotonic()
        held = await server.gateway.deployer.held()
        holding = time.monotonic() - began
    kept = STORED_ALIASES - 2 + KEPT_REVISIONS  # `a1` has moved
    assert len(held[f"f7@{DIGEST}"]) == kept, "what no alias names is pruned, but for the newest"
    assert len(held[f"f8@{DIGEST}"]) == STORED_VERSIONS
    assert again.revisions[2] is first.revisions[2], "what is known is not read again"
    assert grew < MOST_BYTES
    print(f"started in {started:.1f} s, {grew / 1e6:.0f} MB more ({resident_bytes() / 1e6:.0f} in all);", end=" ")
    print(f"list p50 {percentile(took, 0.5) * 1000:.0f} ms, p99 {percentile(took, 0.99) * 1000:.0f} ms;", end=" ")
    print(f"a deploy {deployed * 1000:.0f} ms; all images that are held {holding * 1000:.0f} ms")
