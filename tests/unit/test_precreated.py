"""Sandboxes made ahead: which revisions get some, who takes them, and when they go."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from faas.leases import Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    Kind,
    LogQuery,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, FakeSandbox, eventually, lambda_program
from worker import precreated
from worker.drivers.base import Exit, SandboxState
from worker.memory import meminfo
from worker.pool import Pool
from worker.precreated import CHARGED_BYTES, KEEP_SECONDS, Need, lasts, wanted

MB = 1_048_576
DIGEST = "sha256:" + "0" * 64


def need(**changes: Any) -> Need:
    values: dict[str, Any] = {"needed_at": 100.0, "not_before": 0.0, "desired": 1, "scale_max": 2, "retired": False}
    return Need(**{**values, **changes})


@pytest.mark.parametrize(
    ("seen", "now", "stay", "made"),
    [
        (need(), 100.0, True, 3),
        (need(), 100.0 + KEEP_SECONDS, True, 3),
        (need(), 100.1 + KEEP_SECONDS, False, 0),
        (need(desired=0), 100.0, True, 3),
        (need(desired=2), 100.0, True, 0),
        (need(desired=3), 100.0, True, 0),
        (need(retired=True), 100.0, False, 0),
        (need(not_before=101.0), 100.0, True, 0),
        (need(not_before=101.0), 101.0, True, 3),
    ],
)
def test_who_started_lately_and_may_grow_is_likely_to_scale(seen: Need, now: float, stay: bool, made: int) -> None:
    assert (lasts(seen, now), wanted(seen, 3, now)) == (stay, made)


# Over the fake driver


def revision(number: int = 7, most: int = 5, **keys: Any) -> Revision:
    spec = parse({"name": "hello", "command": [], "entrypoint": ["echo"], "scale": {"max": most}, **keys})
    return Revision(RevisionKey("default", "hello", number), spec, f"hello@{DIGEST}", Interface.LAMBDA)


async def slowly(sandbox: FakeSandbox, event: Any) -> Any:
    await asyncio.sleep(0.05)
    return sandbox.id


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    monkeypatch.setattr(precreated, "PATIENCE_SECONDS", 0.001)
    monkeypatch.setattr(meminfo, "is_short", lambda: False)  # whatever the tests beside it take
    pools: list[tuple[Pool, FakeDriver]] = []

    async def make_pool(most: int = 1, memory_mb: int = 4096) -> tuple[Pool, FakeDriver, Metrics]:
        driver, metrics = FakeDriver({"echo": lambda_program(slowly)}), Metrics("test")
        pool = Pool(driver, tmp_path / "logs", metrics, memory_bytes=memory_mb * MB, precreated=most)
        await pool.open()
        pools.append((pool, driver))
        return pool, driver, metrics

    yield make_pool
    for pool, driver in pools:
        await pool.close(0)
        assert driver.sandboxes == {}


async def invoke(pool: Pool, of: Revision) -> str:
    async with pool.acquire(of, Invocation("r1", Trigger.HTTP, 5.0)) as lease:
        return str(json.loads((await lease.invoke(b"null")).payload))


async def scaled(pool: Pool, of: Revision, number: int) -> None:
    await pool.scale(of, number)
    await eventually(lambda: pool.stats(of.key).idle == number)


def waiting(driver: FakeDriver) -> list[FakeSandbox]:
    return [s for s in driver.sandboxes.values() if s.path == "precreated" and s.state is SandboxState.CREATED]


async def test_after_a_cold_start_one_is_made_and_the_next_instance_is_that_one(make: Callable[..., Any]) -> None:
    pool, driver, metrics = await make()
    of = revision()
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    assert "faas_precreated 1.0" in metrics.render().decode()
    (ready,) = waiting(driver)
    await scaled(pool, of, 2)
    ids = set(await asyncio.gather(invoke(pool, of), invoke(pool, of)))
    assert ready.id in ids
    text = metrics.render().decode()
    assert 'faas_cold_starts_total{function="hello",path="precreated"} 1.0' in text
    assert 'faas_cold_starts_total{function="hello",path="cold"} 1.0' in text
    await eventually(lambda: len(waiting(driver)) == 1)
    assert waiting(driver) != [ready]
    records = [r async for r in pool.logs(LogQuery("default", "hello"))]
    assert sum("Start: precreated" in record.message for record in records) == 1


async def test_none_is_made_where_the_setting_says_so(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make(most=0)
    await scaled(pool, revision(), 1)
    await asyncio.sleep(0.1)
    assert len(driver.created) == 1


async def test_none_is_made_for_a_revision_that_has_all_it_may_have(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    await scaled(pool, revision(most=1), 1)
    await asyncio.sleep(0.1)
    assert len(driver.created) == 1


async def test_its_memory_is_charged_and_is_anybodys_who_needs_it(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make(memory_mb=256 + 8)
    of, other = revision(memory=128), revision(8, memory=264)
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    usage = await pool.usage()
    assert usage.charged_bytes[Kind.STEM] == CHARGED_BYTES
    (ready,) = waiting(driver)
    await pool.scale(other, 1)
    assert await invoke(pool, other) != ready.id
    assert ready.id not in driver.sandboxes


async def test_the_whole_limit_is_charged_once_it_is_an_instance(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make(most=1)
    driver.freeze_error = OSError("no freezer")  # an idle one keeps its charge
    of = revision(most=2, memory=256)
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    await scaled(pool, of, 2)
    assert pool._ledger.charged[Kind.INVOKED] == 512 * MB
    assert pool._ledger.charged[Kind.STEM] == 0


async def test_a_retired_revision_loses_its_own(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    await scaled(pool, revision(), 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    await pool.retire(revision().key)
    await eventually(lambda: driver.sandboxes == {})
    assert pool._ledger.charged[Kind.STEM] == 0


async def test_one_that_stays_when_all_instances_have_gone_serves_the_next_start(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    of = revision()
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    (ready,) = waiting(driver)
    await pool.scale(of, 0)
    await eventually(lambda: list(driver.sandboxes) == [ready.id])
    await pool.scale(of, 1)
    assert await invoke(pool, of) == ready.id


async def test_another_revision_of_the_function_gets_none_of_it(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    await scaled(pool, revision(), 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    (ready,) = waiting(driver)
    await pool.scale(revision(8), 1)
    assert await invoke(pool, revision(8)) != ready.id


async def test_one_from_the_day_before_is_not_used(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pool, driver, _ = await make()
    of = revision()
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    (ready,) = waiting(driver)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert pool._precreator.take(of) is None
    await eventually(lambda: ready.id not in driver.sandboxes)


async def test_one_that_ends_while_it_waits_is_not_used_and_not_replaced_at_once(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    of = revision()
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    (ready,) = waiting(driver)
    ready.ended(Exit(137, 9))
    assert pool._precreator.take(of) is None
    await eventually(lambda: ready.id not in driver.sandboxes)
    await scaled(pool, of, 2)
    assert {s.path for s in driver.sandboxes.values()} == {"cold"}


async def test_what_nobody_needs_any_more_is_given_up(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    await scaled(pool, revision(), 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    now = time.monotonic()
    pool._precreator.shrink(now + KEEP_SECONDS - 5, short=False)
    await asyncio.sleep(0.02)
    assert len(waiting(driver)) == 1
    pool._precreator.shrink(now + KEEP_SECONDS + 5, short=False)
    await eventually(lambda: waiting(driver) == [])


async def test_where_memory_is_short_they_go(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pool, driver, _ = await make()
    await scaled(pool, revision(), 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    monkeypatch.setattr(meminfo, "is_short", lambda: True)
    pool._precreator.shrink(time.monotonic(), short=True)
    await eventually(lambda: waiting(driver) == [])
    await scaled(pool, revision(), 2)
    await asyncio.sleep(0.1)
    assert waiting(driver) == []


async def test_the_janitor_takes_none_of_them_for_an_orphan(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make()
    await scaled(pool, revision(), 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    for _ in range(3):
        await pool._janitor.sweep()
    assert len(waiting(driver)) == 1


async def test_a_launch_that_is_called_off_takes_its_sandbox_along(make: Callable[..., Any]) -> None:
    pool, driver, _ = await make(memory_mb=300)
    of = revision(memory=128)
    await scaled(pool, of, 1)
    await eventually(lambda: len(waiting(driver)) == 1)
    (ready,) = waiting(driver)
    instance, started = pool._of(of).start()
    assert instance.id == ready.id
    pool._of(of)._cancel(instance)
    await asyncio.wait([started])
    await eventually(lambda: ready.id not in driver.sandboxes)
