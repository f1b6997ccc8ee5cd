"""What a worker remembers of failures: starts and invocations of each revision, the last few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faas.errors import FunctionError, InitFailed, OutOfMemory
from faas.leases import Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import Health, LogQuery, RevisionKey
from tests.support.control import until
from tests.support.data_path import revision
from tests.support.fake_driver import FakeDriver, FakeSandbox, lambda_program
from worker.failures import KEPT, MOST, STARTS, Failures
from worker.pool import Pool

KEY = RevisionKey("default", "hello", 1)


def failing(clock: Callable[[], float] = lambda: 7.0) -> Failures:
    return Failures(clock)


def test_starts_that_fail_are_counted_among_the_last_ones_and_a_good_one_ends_the_row() -> None:
    times = iter(range(100))
    failures = failing(lambda: float(next(times)))
    assert failures.health(KEY) == Health()
    for number in range(3):
        failures.start_failed(KEY, f"i{number}", InitFailed("no\nsecond line", hint="mend it", log_tail="x" * 9000))
    health = failures.health(KEY)
    assert (health.starts, health.failed_starts, health.failing_since) == (3, 3, 0.0)
    last = health.start_failure
    assert last is not None
    assert (last.instance, last.code, last.message, last.hint) == ("i2", "Runtime.InitError", "no", "mend it")
    assert len(last.log_tail) == 2000
    failures.started(KEY)
    health = failures.health(KEY)
    assert (health.starts, health.failed_starts, health.failing_since, health.start_failure) == (4, 3, None, None)


def test_everything_that_is_remembered_is_bounded() -> None:
    failures = failing()
    for number in range(3 * STARTS):
        failures.start_failed(KEY, f"i{number}", InitFailed("no"))
    health = failures.health(KEY)
    assert (health.starts, len(health.failures)) == (STARTS, KEPT)
    for number in range(MOST):
        failures.invocation_failed(RevisionKey("default", f"f{number}", 1), "i", "r", OutOfMemory("m" * 9000), None)
    assert failures.health(KEY) == Health()
    assert len(failures.health(RevisionKey("default", "f1", 1)).failures[0].message) == 500


async def launched(pool: Pool, wanted: Any, request_id: str) -> None:
    await pool.scale(wanted, 1)
    async with pool.acquire(wanted, Invocation(request_id, Trigger.HTTP, 5)) as lease:
        await lease.invoke(b"{}")


async def test_a_start_that_fails_is_in_the_functions_log_by_the_id_of_who_waited(tmp_path: Path) -> None:
    async def gone(sandbox: FakeSandbox) -> int:
        sandbox.print("cannot go on")
        return 1

    pool = Pool(FakeDriver({"echo": gone}), tmp_path, Metrics("test"), memory_bytes=1 << 30)
    await pool.open()
    try:
        with pytest.raises(InitFailed):
            await launched(pool, revision(), "r-17")
        query = LogQuery("default", "hello", request_id="r-17")
        lines = [record.message async for record in pool.logs(query)]
        assert lines == ["RequestId: r-17 Error: the instance ended during init: exit status 1"]
        health = pool.health(KEY)
        assert health.failed_starts >= 1
        assert health.start_failure is not None
        assert health.start_failure.log_tail == "cannot go on"
    finally:
        await pool.close(1.0)


async def test_an_invocation_that_fails_is_remembered_with_its_id(tmp_path: Path) -> None:
    async def handler(sandbox: FakeSandbox, event: Any) -> Any:
        if event:
            raise ValueError("no")
        raise SystemExit(3)

    pool = Pool(FakeDriver({"echo": lambda_program(handler)}), tmp_path, Metrics("test"), memory_bytes=1 << 30)
    await pool.open()
    try:
        wanted = revision()
        await pool.scale(wanted, 1)
        async with pool.acquire(wanted, Invocation("r-1", Trigger.HTTP, 5)) as lease:
            await lease.invoke(b'{"a": 1}')
        with pytest.raises(FunctionError):
            await launched(pool, wanted, "r-2")
        await until(lambda: len(pool.health(KEY).failures) == 2)
        assert [(one.request_id, one.code) for one in pool.health(KEY).failures] == [
            ("r-1", "ValueError"),
            ("r-2", "Runtime.ExitError"),
        ]
    finally:
        await pool.close(1.0)
