"""Hundreds of instances of one function at once: what is done for each of them must not be done inside one another."""

from __future__ import annotations

import sys
from pathlib import Path

from faas.leases import Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, eventually
from worker.pool import Pool

MANY = 500
SECONDS = 60.0


def revision() -> Revision:
    spec = parse({"name": "hello", "entrypoint": ["echo"], "scale": {"max": MANY}})
    return Revision(RevisionKey("default", "hello", 1), spec, f"hello@sha256:{'0' * 64}", Interface.LAMBDA)


async def many(folder: Path, driver: FakeDriver) -> tuple[Pool, Revision]:
    assert sys.getrecursionlimit() < 3 * MANY
    hello = revision()
    pool = Pool(driver, folder / "logs", Metrics("test"), memory_bytes=MANY * hello.spec.memory_bytes)
    await pool.open()
    await pool.scale(hello, MANY)
    await eventually(lambda: pool.stats(hello.key).idle == MANY, SECONDS)
    return pool, hello


async def test_five_hundred_idle_instances_are_scaled_to_none_at_once_and_come_back(tmp_path: Path) -> None:
    driver = FakeDriver()
    pool, hello = await many(tmp_path, driver)
    try:
        await pool.scale(hello, 0)
        assert pool.stats(hello.key).idle == 0
        await eventually(lambda: not driver.sandboxes, SECONDS)
        await pool.scale(hello, 1)
        async with pool.acquire(hello, Invocation("r1", Trigger.HTTP, 5)) as lease:
            assert (await lease.invoke(b"1")).payload == b"1"
    finally:
        await pool.close(0)


async def test_a_server_with_five_hundred_idle_instances_closes_and_leaves_none(tmp_path: Path) -> None:
    driver = FakeDriver()
    pool, _ = await many(tmp_path, driver)
    await pool.close(0)
    assert driver.sandboxes == {}
    assert not driver.is_open
