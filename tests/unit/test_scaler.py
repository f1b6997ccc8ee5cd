"""Tick and poke around a worker without containers, by a clock that the test turns."""

from __future__ import annotations

import asyncio

import pytest

from faas.metrics import Metrics
from faas.protocol import RevisionKey, RevisionStats
from faas.spec import Interface
from gateway.collector import Collector
from gateway.idle_patterns import IdlePatterns
from gateway.scaler import Scaler
from tests.support.data_path import revision
from tests.support.fake_worker import FakeWorker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Parts:
    def __init__(self, burst: int = 1000) -> None:
        self.clock, self.worker, self.collector = Clock(), FakeWorker(), Collector()
        self.metrics = Metrics("test")
        self.patterns = IdlePatterns(self.metrics, clock=self.clock)
        self.scaler = Scaler(self.worker, self.collector, self.patterns, burst=burst, clock=self.clock)

    async def pass_seconds(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.now += 1
            await self.scaler.tick(self.clock.now)
            await asyncio.sleep(0)

    async def settled(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    def instances(self, key: RevisionKey) -> int:
        return self.worker.stats(key).instances


@pytest.fixture
def parts() -> Parts:
    return Parts()


async def test_a_poke_from_zero_starts_one_instance_at_once_and_idle_ends_it(parts: Parts) -> None:
    hello = revision(scale={"idle": "5s"})
    load = parts.collector.load(hello.key, parts.clock())
    load.enter(parts.clock())
    await parts.scaler.poke(hello)
    assert parts.worker.scaled == [(hello.key, 1)]
    await parts.settled()
    load.leave(parts.clock())
    await parts.pass_seconds(5)
    assert parts.instances(hello.key) == 1
    await parts.pass_seconds(1)
    assert parts.instances(hello.key) == 0


async def test_a_poke_costs_nothing_where_a_slot_is_free(parts: Parts) -> None:
    hello = revision()
    await parts.worker.scale(hello, 2)
    await parts.settled()
    parts.worker.scaled.clear()
    parts.collector.load(hello.key, parts.clock()).enter(parts.clock())
    await parts.scaler.poke(hello)
    assert parts.worker.scaled == []


async def test_a_thousand_invocations_at_once_ask_once_and_for_no_more_than_max(parts: Parts) -> None:
    hello = revision(scale={"max": 5})
    for _ in range(1000):
        parts.collector.load(hello.key, parts.clock()).enter(parts.clock())
    for _ in range(1000):
        await parts.scaler.poke(hello)
    assert parts.worker.scaled == [(hello.key, 5)]


async def test_a_number_set_by_hand_is_where_the_autoscaler_goes_on_from(parts: Parts) -> None:
    hello = revision(scale={"idle": "3s"})
    load = parts.collector.load(hello.key, parts.clock())
    for _ in range(4):
        load.enter(parts.clock())
    await parts.scaler.poke(hello)
    await parts.settled()
    for _ in range(4):
        load.leave(parts.clock())
    assert parts.instances(hello.key) == 4
    await parts.scaler.set_now(hello, 0)
    assert parts.instances(hello.key) == 0
    await parts.pass_seconds(2)
    assert parts.instances(hello.key) == 0, "the tick must not bring the old number back"
    await parts.scaler.set_now(hello, 2)
    await parts.settled()
    await parts.pass_seconds(3)
    assert parts.instances(hello.key) == 2
    await parts.pass_seconds(1)
    assert parts.instances(hello.key) == 0


async def test_min_is_kept_where_live_is_and_the_one_before_ends(parts: Parts) -> None:
    old, new = revision(scale={"min": 2}), revision(number=2, scale={"min": 3})
    await parts.scaler.revision_live(old)
    await parts.settled()
    assert parts.instances(old.key) == 2
    await parts.scaler.revision_live(new)
    await parts.settled()
    assert (parts.instances(old.key), parts.instances(new.key)) == (0, 3)
    await parts.pass_seconds(3)
    assert (parts.instances(old.key), parts.instances(new.key)) == (0, 3)


async def test_what_runs_on_the_old_revision_keeps_its_instance_until_it_ends_and_no_longer(
    parts: Parts,
) -> None:
    old, new = revision(), revision(number=2)
    await parts.scaler.revision_live(old)
    load = parts.collector.load(old.key, parts.clock())
    load.enter(parts.clock())
    await parts.scaler.poke(old)
    await parts.settled()
    await parts.scaler.revision_live(new)
    await parts.pass_seconds(3)
    assert parts.instances(old.key) == 1
    load.leave(parts.clock())
    await parts.pass_seconds(2)
    assert parts.instances(old.key) == 0
    assert old not in parts.scaler.in_use


async def test_an_old_revision_that_is_called_by_its_number_again_stays_for_idle(parts: Parts) -> None:
    old, new = revision(scale={"idle": "4s"}), revision(number=2)
    await parts.scaler.revision_live(old)
    await parts.scaler.revision_live(new)
    load = parts.collector.load(old.key, parts.clock())
    load.enter(parts.clock())
    await parts.scaler.poke(old)
    await parts.settled()
    load.leave(parts.clock())
    await parts.pass_seconds(3)
    assert parts.instances(old.key) == 1
    await parts.pass_seconds(2)
    assert parts.instances(old.key) == 0


async def test_the_instance_of_a_deploys_check_stays_for_idle(parts: Parts) -> None:
    hello = revision(scale={"idle": "3s"})
    await parts.worker.check(hello)
    await parts.scaler.revision_live(hello)
    await parts.pass_seconds(3)
    assert parts.instances(hello.key) == 1
    await parts.scaler.revision_live(hello)  # said again: no new lease of life
    await parts.pass_seconds(1)
    assert parts.instances(hello.key) == 0


async def test_a_retired_revision_is_told_to_the_worker_and_forgotten(parts: Parts) -> None:
    hello = revision(scale={"min": 1})
    await parts.scaler.revision_live(hello)
    await parts.settled()
    await parts.scaler.retire(hello.key)
    assert parts.worker.retired == [hello.key]
    parts.worker.scaled.clear()
    await parts.pass_seconds(2)
    assert parts.worker.scaled == []
    assert parts.scaler.in_use == []


async def test_a_worker_that_does_not_answer_never_scales_anything_down(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = revision("one", scale={"min": 1}), revision("other", scale={"min": 1})
    await parts.scaler.revision_live(one)
    await parts.scaler.revision_live(other)
    await parts.settled()
    answers = parts.worker.stats

    def fails_for_one(key: RevisionKey) -> RevisionStats:
        if key == one.key:
            raise OSError("gone")
        return answers(key)

    monkeypatch.setattr(parts.worker, "stats", fails_for_one)
    parts.worker.scaled.clear()
    await parts.scaler.tick(parts.clock() + 10_000)
    assert parts.worker.scaled == []
    assert "scaling failed" in caplog.text
    monkeypatch.undo()
    assert parts.instances(one.key) == 1


async def test_the_loop_starts_and_stops_without_a_trace(parts: Parts) -> None:
    before = asyncio.all_tasks()
    await parts.scaler.start()
    assert len(asyncio.all_tasks()) == len(before) + 1
    await parts.scaler.stop()
    await parts.scaler.stop()
    assert asyncio.all_tasks() == before


async def test_an_http_functions_load_over_a_minute_decides(parts: Parts) -> None:
    web = revision(interface=Interface.HTTP, concurrency=10, scale={"target": 0.5, "idle": "10s"})
    load = parts.collector.load(web.key, parts.clock())
    for _ in range(10):
        load.enter(parts.clock())
        await parts.scaler.poke(web)
        await parts.settled()
    assert parts.instances(web.key) == 1
    await parts.pass_seconds(70)
    assert parts.instances(web.key) == 2  # 10 on average, 5 aimed at
    for _ in range(10):
        load.leave(parts.clock())
    await parts.pass_seconds(90)
    assert parts.instances(web.key) == 0


async def test_a_burst_starts_so_many_at_once_and_the_rest_as_time_goes_by_for_all_its_revisions() -> None:
    parts = Parts(burst=20)
    old, new = revision(), revision(number=2)
    for of in (old, new):
        for _ in range(15):
            parts.collector.load(of.key, parts.clock()).enter(parts.clock())
        await parts.scaler.poke(of)
    await parts.settled()
    assert (parts.instances(old.key), parts.instances(new.key)) == (15, 5)
    await parts.pass_seconds(3)
    assert parts.instances(new.key) == 11
    other = revision("other")
    for _ in range(20):
        parts.collector.load(other.key, parts.clock()).enter(parts.clock())
    await parts.scaler.poke(other)
    assert parts.instances(other.key) == 20, "another function has a bucket of its own"
    await parts.pass_seconds(2)
    assert parts.instances(new.key) == 15


async def test_what_was_told_and_is_not_there_yet_is_not_paid_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(burst=10)
    hello = revision()
    parts.worker.start_seconds = 3600
    monkeypatch.setattr(parts.worker, "stats", lambda key: RevisionStats())  # no memory: nothing starts
    for _ in range(10):
        parts.collector.load(hello.key, parts.clock()).enter(parts.clock())
    await parts.scaler.poke(hello)
    await parts.pass_seconds(5)
    assert [desired for _, desired in parts.worker.scaled] == [10] * 6


async def test_a_reservation_is_the_most_instances() -> None:
    parts = Parts()
    hello = revision(scale={"reserved": 3})
    for _ in range(9):
        parts.collector.load(hello.key, parts.clock()).enter(parts.clock())
    await parts.scaler.poke(hello)
    await parts.settled()
    assert parts.instances(hello.key) == 3
