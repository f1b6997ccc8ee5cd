"""`scale.min`: instances that are kept ready, whatever ends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.metrics import Metrics
from faas.protocol import Revision, RevisionKey
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, eventually, lambda_program
from worker import backoff
from worker.pool import Pool

MB = 1_048_576


def revision(name: str, least: int) -> Revision:
    spec = parse({"name": name, "entrypoint": ["echo"], "memory": 256, "scale": {"min": least}})
    return Revision(RevisionKey("default", name, 1), spec, f"{name}@sha256:{'0' * 64}", Interface.LAMBDA)


@pytest.fixture
async def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 3600.0)  # who is paused for a failure does not come in time

    async def echo(_: object, event: object) -> object:
        return event

    made = Pool(FakeDriver({"echo": lambda_program(echo)}), tmp_path / "logs", Metrics("test"), memory_bytes=1024 * MB)
    await made.open()
    yield made
    await made.close(1)


def idle(pool: Pool, of: Revision) -> list[str]:
    return [instance.id for instance in pool.instances(of.key) if instance.state == "idle"]


async def ends(pool: Pool, instance_id: str) -> None:
    driver = pool._driver
    assert isinstance(driver, FakeDriver)
    await driver.kill(driver.sandboxes[instance_id])


async def test_one_that_lived_for_a_while_is_replaced_at_once_and_one_that_ends_right_away_slowly(pool: Pool) -> None:
    kept = revision("kept", 2)
    await pool.scale(kept, 2)
    await eventually(lambda: len(idle(pool, kept)) == 2)
    for instance in pool._pools[kept.key].every_instance:
        instance.started_at -= backoff.LIVED_SECONDS
    before = set(idle(pool, kept))
    await ends(pool, min(before))
    await eventually(lambda: len(idle(pool, kept)) == 2 and not before <= set(idle(pool, kept)))
    await ends(pool, (set(idle(pool, kept)) - before).pop())
    await eventually(lambda: len(idle(pool, kept)) == 1)
    assert pool.stats(kept.key).starting == 0


async def test_those_reserved_for_a_function_are_there_though_others_have_all_the_rest(pool: Pool) -> None:
    greedy, kept = revision("greedy", 4), revision("kept", 0)
    pool.reserve("default", "kept", 512 * MB)
    await pool.scale(greedy, 4)
    await eventually(lambda: len(idle(pool, greedy)) == 2)
    await pool.scale(kept, 2)
    await eventually(lambda: len(idle(pool, kept)) == 2)
    assert pool.stats(greedy.key).idle == 2
    await pool.scale(kept, 0)
    await eventually(lambda: not pool.instances(kept.key))
    assert pool.stats(greedy.key).idle == 2, "what is reserved is not used by others meanwhile"
    pool.reserve("default", "kept", 0)
    await eventually(lambda: len(idle(pool, greedy)) == 4)
