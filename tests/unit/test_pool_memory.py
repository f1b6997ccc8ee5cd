"""The pool and the memory ledger: who starts, who makes room, who waits, who is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from faas.errors import InitFailed, InvalidInput, ShuttingDown, SpecError, Throttled
from faas.leases import Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    Kind,
    Outcome,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, FakeSandbox, eventually, lambda_program
from tests.support.memory_requests import nobodys_patience_ends
from worker import usage
from worker.pool import Pool

MB = 1_048_576
BUDGET = 600


def revision(name: str, memory: int = 256, number: int = 1, **keys: Any) -> Revision:
    spec = parse({"name": name, "entrypoint": ["gated"], "memory": memory, **keys})
    return Revision(RevisionKey("default", name, number), spec, f"{name}@sha256:{'0' * 64}", Interface.LAMBDA)


@dataclass
class Parts:
    """A pool whose functions answer when `gate` is open; nothing can be frozen: what is idle keeps its charge."""

    folder: Path
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.driver = FakeDriver({"gated": lambda_program(self._handle), "job": self._job})
        self.pool = Pool(self.driver, self.folder / "logs", Metrics("test"), memory_bytes=BUDGET * MB)
        self.driver.freeze_error = OSError("no freezer")
        self.gate.set()

    async def _handle(self, sandbox: FakeSandbox, event: Any) -> Any:
        await self.gate.wait()
        return event

    async def _job(self, sandbox: FakeSandbox) -> int:
        sandbox.print("at work")
        await self.gate.wait()
        return 3

    async def invoke(self, of: Revision, wait: float = 5.0) -> Any:
        """As the gateway does: says how many there should be, then asks for a slot."""
        stats = self.pool.stats(of.key)
        if not stats.idle:
            await self.pool.scale(of, max(stats.instances, stats.busy + stats.waiting + 1))
        async with self.pool.acquire(of, Invocation("r", Trigger.HTTP, wait)) as lease:
            return json.loads((await lease.invoke(b'"done"')).payload)

    async def busy(self, of: Revision) -> asyncio.Task[Any]:
        """An invocation that runs until the gate is open."""
        self.gate.clear()
        before = self.pool.stats(of.key).executing
        task = asyncio.create_task(self.invoke(of))
        await eventually(lambda: self.pool.stats(of.key).executing > before)
        return task

    async def idle(self, *revisions: Revision) -> None:
        """One idle instance of each, the first one the longest."""
        for of in revisions:
            assert await self.invoke(of) == "done"

    def instances(self, of: Revision) -> int:
        return self.pool.stats(of.key).instances

    @property
    def charged(self) -> int:
        return sum(self.pool._ledger.charged.values()) // MB

    @property
    def evictions(self) -> int:
        return sum(self.pool._ledger.evictions.values())


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    made = Parts(tmp_path)
    await made.pool.open()
    yield made
    made.gate.set()
    await made.pool.close(1)
    assert made.driver.sandboxes == {}
    assert made.charged == 0
    assert made.pool._ledger.waiting == 0


A, B, C = revision("a"), revision("b"), revision("c")


async def test_an_instance_is_charged_its_limit_from_its_start_to_its_end(parts: Parts) -> None:
    parts.driver.create_seconds = 0.05
    await parts.pool.scale(A, 1)
    await eventually(lambda: parts.charged == 256)
    assert parts.pool.stats(A.key).starting == 1
    await eventually(lambda: parts.pool.stats(A.key).idle == 1)
    assert parts.charged == 256
    await parts.pool.scale(A, 0)
    await eventually(lambda: parts.charged == 0)


async def test_the_third_makes_the_longest_unused_idle_one_go(parts: Parts) -> None:
    await parts.idle(A)
    await asyncio.sleep(0.2)  # longer than starts differ: what a start costs counts too
    await parts.idle(B)
    assert await parts.invoke(C) == "done"
    assert (parts.instances(A), parts.instances(B), parts.instances(C)) == (0, 1, 1)
    assert (parts.charged, parts.evictions) == (512, 1)


async def test_a_busy_one_is_never_evicted_and_what_is_idle_goes_though_it_was_used_last(parts: Parts) -> None:
    call = await parts.busy(A)
    parts.gate.set()
    await call
    await parts.idle(B)
    busy = await parts.busy(A)
    waiting = asyncio.create_task(parts.invoke(C))
    await eventually(lambda: parts.pool.stats(C.key).executing == 1)
    assert (parts.instances(A), parts.instances(B)) == (1, 0)
    parts.gate.set()
    assert set(await asyncio.gather(busy, waiting)) == {"done"}


async def test_where_all_are_busy_it_waits_and_comes_when_one_has_ended(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.memory.charge.LOOK_SECONDS", 3600.0)  # at once, not when something looks again
    first, second = await parts.busy(A), await parts.busy(B)
    third = asyncio.create_task(parts.invoke(C))
    await asyncio.sleep(0.1)
    assert (parts.pool.stats(C.key).waiting, parts.charged, len(parts.driver.created)) == (1, 512, 2)
    parts.gate.set()
    async with asyncio.timeout(30):
        assert set(await asyncio.gather(first, second, third)) == {"done"}
    assert parts.evictions == 1


async def test_one_that_nobody_waits_for_any_more_when_it_is_ready_makes_room_at_once(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.memory.charge.LOOK_SECONDS", 3600.0)  # nothing looks again
    nobodys_patience_ends(parts.pool)
    busy = await parts.busy(A)
    parts.driver.create_seconds = 0.3
    leaving = asyncio.create_task(parts.invoke(B))
    await eventually(lambda: parts.pool.stats(B.key).starting == 1 and parts.charged == 512)
    leaving.cancel()
    waiting = asyncio.create_task(parts.invoke(C))
    await eventually(lambda: parts.pool.stats(C.key).executing == 1)
    assert parts.instances(B) == 0
    parts.gate.set()
    await asyncio.gather(busy, waiting)


async def test_more_calls_than_launches_at_once_are_all_refused_in_time(parts: Parts) -> None:
    calls = [await parts.busy(A), await parts.busy(B)]
    async with asyncio.timeout(3):  # in turns of as many as launch at once they would take 4 s
        refused = await asyncio.gather(*(parts.invoke(C, wait=1) for _ in range(20)), return_exceptions=True)
    assert {error.reason for error in refused if isinstance(error, Throttled)} == {"memory"}
    assert all(isinstance(error, Throttled) for error in refused)
    parts.gate.set()
    await asyncio.gather(*calls)


async def test_a_wait_for_memory_that_is_over_is_throttled_with_that_reason_and_leaves_nothing(parts: Parts) -> None:
    calls = [await parts.busy(A), await parts.busy(B)]
    with pytest.raises(Throttled, match=r"within 0\.1 s: 256 MB are wanted, and the 600 MB") as refused:
        await parts.invoke(C, wait=0.1)
    assert (refused.value.reason, refused.value.status) == ("memory", 429)
    await eventually(lambda: parts.pool._ledger.waiting == 0)
    parts.gate.set()
    await asyncio.gather(*calls)
    await asyncio.sleep(0.1)
    assert (parts.instances(A), parts.instances(B), parts.instances(C)) == (1, 1, 0)  # it was not wanted any more


async def test_a_queue_timeout_of_0_is_enough_where_an_idle_one_makes_room(parts: Parts) -> None:
    await parts.idle(A, B)
    assert await parts.invoke(C, wait=0) == "done"


async def test_nobody_goes_for_an_instance_that_nobody_waits_for(parts: Parts) -> None:
    await parts.idle(A, B)
    await parts.pool.scale(C, 2)
    await asyncio.sleep(0.05)
    assert (parts.instances(C), parts.evictions, parts.pool._ledger.waiting) == (0, 0, 0)
    await parts.pool.scale(A, 0)
    await eventually(lambda: parts.charged == 256)
    await parts.pool.scale(C, 2)  # the scaler says it each second
    await eventually(lambda: parts.pool.stats(C.key).idle == 1)
    assert parts.instances(C) == 1


async def test_provisioned_ones_stay_and_make_others_go_to_be_there(parts: Parts) -> None:
    kept = revision("kept", scale={"min": 1})
    await parts.idle(A, B)
    await parts.pool.scale(kept, 1)
    await eventually(lambda: parts.pool.stats(kept.key).idle == 1)
    assert parts.evictions == 1
    await parts.idle(A, B, A, B)
    assert parts.instances(kept) == 1
    call = await parts.busy(A)
    with pytest.raises(Throttled) as refused:
        await parts.invoke(B, wait=0.05)
    assert refused.value.reason == "memory"
    assert parts.instances(kept) == 1
    parts.gate.set()
    await call


async def test_more_provisioned_ones_than_fit_leave_others_their_chance(parts: Parts) -> None:
    greedy = revision("greedy", 128, scale={"min": 3})
    other = revision("other", 128, scale={"min": 3})
    await parts.pool.scale(greedy, 3)
    await parts.pool.scale(other, 3)
    await eventually(lambda: parts.pool.stats(greedy.key).idle == 3 and parts.pool.stats(other.key).idle == 1)
    await asyncio.sleep(1.2)  # the two that do not fit have waited long
    await parts.pool.scale(greedy, 2)
    await eventually(lambda: parts.pool.stats(other.key).idle == 2)


async def test_a_function_that_waits_long_comes_before_the_next_call_of_a_busy_one(parts: Parts) -> None:
    small, large = revision("small", 300, scale={"max": 2}), revision("large", 600)
    stop = False

    async def stream() -> None:
        while not stop:
            await parts.invoke(small)

    async def slow(sandbox: FakeSandbox, event: Any) -> Any:
        await asyncio.sleep(0.02)
        return event

    parts.driver.programs["gated"] = lambda_program(slow)
    streams = [asyncio.create_task(stream()) for _ in range(4)]
    await eventually(lambda: parts.pool.stats(small.key).executing == 2)
    assert await parts.invoke(large) == "done"
    stop = True
    await asyncio.gather(*streams)  # and they too go on


async def test_a_check_is_admitted_and_refused_with_the_reason_where_all_are_busy(parts: Parts) -> None:
    await parts.idle(A, B)
    await parts.pool.check(C)
    assert parts.evictions == 1
    calls = [await parts.busy(B), await parts.busy(C)]
    with pytest.raises(Throttled) as refused:
        await parts.pool.check(revision("d", queue_timeout=0))
    assert refused.value.reason == "memory"
    assert parts.pool._ledger.waiting == 0
    parts.gate.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize(
    ("keys", "words", "key"),
    [
        ({"memory": 601}, "memory: 601 MB can never run here: all instances may have 600 MB together", "memory"),
        ({"scale": {"min": 3}}, r"scale\.min: 3 instances of 256 MB can never run here", "scale.min"),
    ],
)
async def test_what_the_budget_could_never_hold_is_refused_before_anything_is_unpacked(
    parts: Parts, keys: dict[str, Any], words: str, key: str
) -> None:
    with pytest.raises(SpecError, match=words) as refused:
        await parts.pool.prepare(revision("big", **keys))
    assert refused.value.key == key
    assert "memory_budget" in refused.value.hint
    await parts.pool.prepare(revision("fits", 600))


async def test_one_that_was_deployed_under_a_larger_budget_is_refused_at_once(parts: Parts) -> None:
    with pytest.raises(Throttled, match="601 MB are more than the 600 MB") as refused:
        await parts.invoke(revision("big", 601))
    assert refused.value.reason == "memory"


async def test_a_start_that_fails_gives_its_memory_back(parts: Parts) -> None:
    async def broken(sandbox: FakeSandbox) -> int:
        return 1

    parts.driver.programs["gated"] = broken
    for _ in range(3):
        with pytest.raises(InitFailed):
            await parts.invoke(A)
    await eventually(lambda: parts.charged == 0)


async def test_an_instance_that_ends_by_itself_gives_its_memory_back(parts: Parts) -> None:
    await parts.idle(A)
    parts.driver.created[0].task.cancel()  # type: ignore[union-attr]
    await eventually(lambda: parts.pool.stats(A.key).idle == 0 and parts.charged == 0)


async def test_what_does_not_die_stays_charged(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await parts.idle(A)
    kill, delete, free = parts.driver.kill, parts.driver.delete, asyncio.Event()

    async def refuse(sandbox: Any) -> None:
        if not free.is_set():
            raise OSError("it does not die")
        await kill(sandbox)

    async def later(sandbox_id: str) -> None:
        await free.wait()
        await delete(sandbox_id)

    monkeypatch.setattr(parts.driver, "kill", refuse)
    monkeypatch.setattr(parts.driver, "delete", later)
    await parts.pool.scale(A, 0)
    await eventually(lambda: parts.pool.stats(A.key).instances == 0)
    await asyncio.sleep(0.6)  # its last words are waited for
    assert parts.charged == 256
    free.set()
    await eventually(lambda: parts.charged == 0)


# Jobs and services


async def test_a_job_runs_to_its_end_and_says_how_and_a_service_is_kept_until_it_is_left(parts: Parts) -> None:
    one = revision("batch", entrypoint=["job"])
    parts.gate.clear()
    async with parts.pool.run(one, Kind.SERVICE, wait_seconds=1) as service:
        async with parts.pool.run(one, Kind.JOB, wait_seconds=1) as job:
            assert parts.pool._ledger.charged == {**dict.fromkeys(Kind, 0), Kind.JOB: 256 * MB, Kind.SERVICE: 256 * MB}
            assert len({job.instance_id, service.instance_id} & set(parts.driver.sandboxes)) == 2
            parts.gate.set()
            assert await job.outcome() == Outcome(3)
            assert await job.outcome() == Outcome(3)
        assert job.instance_id not in parts.driver.sandboxes
        assert parts.charged == 256
    assert parts.charged == 0
    assert (await service.outcome()).code == 3


async def test_jobs_and_services_make_idle_ones_go_and_are_never_evicted_themselves(parts: Parts) -> None:
    kept = revision("kept", entrypoint=["job"])
    await parts.idle(A, B)
    parts.gate.clear()
    async with parts.pool.run(kept, Kind.SERVICE, wait_seconds=1):
        assert (parts.evictions, parts.charged) == (1, 512)
        parts.gate.set()
        await parts.idle(C)
        assert parts.evictions == 2
        call = await parts.busy(C)
        with pytest.raises(Throttled) as refused:
            async with parts.pool.run(kept, Kind.JOB, wait_seconds=0.05):
                pass
        assert refused.value.reason == "memory"
        parts.gate.set()
        await call


async def test_a_run_is_a_job_or_a_service_and_nothing_else(parts: Parts) -> None:
    with pytest.raises(InvalidInput, match="a job or a service, not stem"):
        async with parts.pool.run(A, Kind.STEM, wait_seconds=1):
            pass


async def test_closing_tells_a_run_that_waits_and_ends_one_that_runs(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    await parts.pool.open()
    parts.gate.clear()
    huge = revision("huge", 600, entrypoint=["job"])

    async def run() -> Outcome:
        async with parts.pool.run(huge, Kind.JOB, wait_seconds=60) as job:
            return await job.outcome()

    first = asyncio.create_task(run())
    await eventually(lambda: parts.charged == 600)
    second = asyncio.create_task(run())
    await eventually(lambda: parts.pool._ledger.waiting == 1)
    closing = asyncio.create_task(parts.pool.close(1))
    with pytest.raises(ShuttingDown):
        await second
    assert (await first).signal == 9
    await closing
    assert (parts.driver.sandboxes, parts.charged) == ({}, 0)


# Usage


async def test_usage_is_measured_summed_by_revision_and_asked_for_twice_a_second_at_most(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.idle(A, B)
    busy = await parts.busy(B)
    looks: list[int] = []
    now = 1000.0
    read = usage.UsageMeter._read
    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))

    def counted(meter: usage.UsageMeter, sandboxes: list[Any]) -> Any:  # the freezer asks the driver as well
        looks.append(len(sandboxes))
        return read(meter, sandboxes)

    monkeypatch.setattr(usage.UsageMeter, "_read", counted)
    first, *others = await asyncio.gather(*(parts.pool.usage() for _ in range(50)))
    assert looks == [2]
    assert all(other is first for other in others)
    by_key = {one.key: one for one in first.revisions}
    assert (by_key[A.key].stats.idle, by_key[B.key].stats.busy) == (1, 1)
    assert (by_key[A.key].memory_bytes, by_key[A.key].charged_bytes) == (10 * MB, 256 * MB)
    assert (first.budget_bytes, first.charged_bytes[Kind.INVOKED]) == (600 * MB, 512 * MB)
    assert by_key[A.key].cpus is None
    now += 0.49
    assert await parts.pool.usage() is first
    assert looks == [2]
    now += 0.02
    again = await parts.pool.usage()
    assert {one.cpus for one in again.revisions} == {0.0}
    parts.gate.set()
    await busy
