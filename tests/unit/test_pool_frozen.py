"""The pool with idle instances that stand still: what they are charged, who goes on, who waits, who makes room."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from faas.errors import Throttled
from faas.leases import HttpRequest, Invocation, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    Kind,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.conftest import SOAK
from tests.support.fake_driver import FakeDriver, FakeRuntime, FakeSandbox, eventually, lambda_program
from tests.support.memory_requests import nobodys_patience_ends
from worker.instance import Instance
from worker.memory.charge import Charge
from worker.pool import Pool

MB = 1_048_576
BURST = 300 if SOAK else 60
STILL = 11  # MB: what a fake sandbox uses, and a little more


def revision(name: str, memory: int = 256, **keys: Any) -> Revision:
    spec = parse({"name": name, "entrypoint": ["gated"], "memory": memory, "scale": {"max": 100}, **keys})
    return Revision(RevisionKey("default", name, 1), spec, f"{name}@sha256:{'0' * 64}", Interface.LAMBDA)


@dataclass
class World:
    """A pool whose functions answer when `gate` is open. That none is given an event while it is frozen, and that the
    budget holds whenever one is, is checked for every test."""

    folder: Path
    budget: int = 600
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.driver = FakeDriver({"gated": lambda_program(self._handle)})
        self.pool = Pool(self.driver, self.folder / "logs", Metrics("test"), memory_bytes=self.budget * MB)
        self.gate.set()

    async def _handle(self, sandbox: FakeSandbox, event: Any) -> Any:
        if sandbox.is_frozen:
            self.wrong.append("it was given an event while it stood still")
        if self.charged > self.budget:
            self.wrong.append("more than the budget is charged")
        await self.gate.wait()
        await asyncio.sleep(event if isinstance(event, float) else 0)
        return event

    async def invoke(self, of: Revision, event: Any = "done", wait: float = 5.0) -> Any:
        stats = self.pool.stats(of.key)
        if stats.instances <= stats.executing + stats.waiting:
            await self.pool.scale(of, min(of.spec.scale.max, stats.executing + stats.waiting + 1))
        async with self.pool.acquire(of, Invocation("r", Trigger.HTTP, wait)) as lease:
            return json.loads((await lease.invoke(json.dumps(event).encode())).payload)

    async def busy(self, of: Revision) -> asyncio.Task[Any]:
        self.gate.clear()
        before = self.pool.stats(of.key).executing
        task = asyncio.create_task(self.invoke(of))
        await eventually(lambda: self.pool.stats(of.key).executing > before)
        return task

    async def still(self, *revisions: Revision, instances: int = 1) -> None:
        """So many of each, which stand still."""
        for of in revisions:
            await self.pool.scale(of, instances)
            await eventually(lambda of=of: self.pool.stats(of.key).idle == instances)  # type: ignore[misc]
            await eventually(lambda of=of: all(i.is_frozen for i in self.instances(of)))  # type: ignore[misc]

    def instances(self, of: Revision) -> tuple[Instance, ...]:
        return self.pool._pools[of.key].every_instance

    def charge(self, of: Revision) -> Charge:
        (instance,) = self.instances(of)
        assert instance.charge is not None
        return instance.charge

    @property
    def charged(self) -> int:
        return sum(self.pool._ledger.charged.values()) // MB

    @property
    def evictions(self) -> int:
        return sum(self.pool._ledger.evictions.values())


Make = Callable[..., Any]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[World] = []

    async def make_world(**keys: Any) -> World:
        made.append(World(tmp_path, **keys))
        await made[-1].pool.open()
        return made[-1]

    yield make_world
    for world in made:
        world.gate.set()
        await world.pool.close(1)
        assert world.wrong == []
        assert (world.driver.sandboxes, world.charged) == ({}, 0)
        assert (world.pool._ledger.waiting, world.pool._ledger.yielding) == (0, 0)


A, B, C = revision("a"), revision("b"), revision("c")


async def test_an_idle_one_is_charged_what_it_has_and_its_limit_from_before_it_goes_on(make: Make) -> None:
    world = await make()
    await world.still(A, B, C)
    assert (world.charged, world.evictions) == (3 * STILL, 0)
    call = await world.busy(A)
    assert (world.charge(A).size, world.charged) == (256 * MB, 256 + 2 * STILL)
    world.gate.set()
    await call
    await eventually(lambda: world.charged == 3 * STILL)
    assert [status.state for status in world.pool.instances(A.key)] == ["idle"]


async def test_who_comes_back_at_once_pays_nothing_and_who_comes_while_it_is_being_frozen_is_served(make: Make) -> None:
    world = await make()
    world.driver.freeze_seconds = 0.05
    await world.invoke(A)
    (instance,) = world.instances(A)
    for _ in range(100):
        await world.invoke(A)
    assert world.driver.created[0].freezes <= 1
    for _ in range(3):
        await eventually(lambda: instance.freezing is not None)
        assert await world.invoke(A, "in the midst") == "in the midst"
        assert not world.driver.created[0].is_frozen
    assert len(world.driver.created) == 1
    await eventually(lambda: instance.is_frozen)


async def test_a_runtime_that_is_slow_to_ask_for_the_next_event_is_waited_for_a_while(make: Make) -> None:
    world = await make()
    asks, asked = asyncio.Event(), asyncio.Event()

    async def slow(sandbox: FakeSandbox) -> int:
        runtime: FakeRuntime = await sandbox.runtime()
        while True:
            request_id, event = await runtime.next()
            await runtime.respond(request_id, event)
            await asks.wait()
            asked.set()

    world.driver.programs["gated"] = slow
    await world.invoke(A)
    await asyncio.sleep(0.04)
    (instance,) = world.instances(A)
    assert not instance.is_frozen
    asks.set()
    await asked.wait()
    await eventually(lambda: instance.is_frozen)
    asks.clear()
    await world.invoke(A)
    await eventually(lambda: instance.is_frozen)  # not for ever: it was given its time
    asks.set()
    assert await world.invoke(A, 1) == 1


async def test_http_functions_are_never_frozen(make: Make) -> None:
    world = await make()

    async def serve(sandbox: FakeSandbox) -> int:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

        await sandbox.serve(handle)
        await asyncio.sleep(60)
        return 0

    world.driver.programs["serve"] = serve
    served = revision("served", entrypoint=["serve"], interface="http")
    served = Revision(served.key, served.spec, served.image, Interface.HTTP)
    await world.pool.scale(served, 1)
    async with world.pool.acquire(served, Invocation("r", Trigger.HTTP, 5)) as lease:
        response = await lease.request(HttpRequest("GET", "/", (("host", "x"),), None))
        assert b"".join([piece async for piece in response.body]) == b"ok"
    await asyncio.sleep(0.2)
    assert world.driver.created[0].freezes == 0
    assert world.charge(served).size == 256 * MB


async def test_a_burst_on_more_than_can_run_at_once_is_answered_and_the_budget_holds(make: Make) -> None:
    world = await make(budget=1024)
    many = revision("many", 128)
    await world.still(many, instances=40)
    assert world.charged == 40 * STILL
    nobodys_patience_ends(world.pool)
    answers = await asyncio.gather(*(world.invoke(many, 0.02) for _ in range(40)))
    assert answers == [0.02] * 40
    assert len(world.instances(many)) == 40  # so short a queue is worth nobody's instance
    await eventually(lambda: world.charged == 40 * STILL)


async def test_a_burst_as_large_as_what_stands_still_has_all_of_it_go_on(make: Make) -> None:
    world = await make(budget=BURST * 128)
    many = revision("many", 128, scale={"max": BURST})
    await world.still(many, instances=BURST)
    world.gate.clear()
    calls = [asyncio.create_task(world.invoke(many, wait=20)) for _ in range(BURST)]
    await eventually(lambda: world.pool.stats(many.key).executing == BURST)
    assert (len(world.driver.created), world.evictions) == (BURST, 0)
    world.gate.set()
    assert await asyncio.gather(*calls) == ["done"] * BURST


async def test_of_a_burst_of_long_calls_as_many_run_as_the_budget_holds(make: Make) -> None:
    world = await make(budget=1024)
    many = revision("many", 128)
    await world.still(many, instances=40)
    world.gate.clear()
    calls = [asyncio.create_task(world.invoke(many, wait=20)) for _ in range(40)]
    await eventually(lambda: world.pool.stats(many.key).executing >= 4)
    assert world.pool.stats(many.key).executing <= 7
    await eventually(lambda: world.pool.stats(many.key).executing == 8)  # others that stood still went for it
    assert world.charged <= 1024
    world.gate.set()
    assert await asyncio.gather(*calls) == ["done"] * 40


async def test_of_a_queue_that_moves_and_lasts_as_many_run_as_the_budget_holds_and_none_is_started(make: Make) -> None:
    world = await make(budget=1024)
    many = revision("many", 128)
    await world.still(many, instances=40)
    enough = asyncio.Event()

    async def client() -> None:
        while not enough.is_set():
            await world.invoke(many, 0.05, wait=20)

    clients = [asyncio.create_task(client()) for _ in range(30)]
    await eventually(lambda: world.pool.stats(many.key).executing == 8, 10)
    assert len(world.driver.created) == 40
    enough.set()
    await asyncio.gather(*clients)


async def test_when_all_that_is_there_stands_still_and_fills_the_budget_each_function_is_still_answerable(
    make: Make,
) -> None:
    world = await make(budget=300)
    functions = [revision(f"f{n}", 128) for n in range(16)]
    await world.still(*functions)
    assert world.charged == 16 * STILL
    for sandbox in world.driver.created:
        sandbox.memory_bytes = 25 * MB
    nobodys_patience_ends(world.pool)
    async with asyncio.timeout(30):
        for of in functions:
            assert await world.invoke(of) == "done"
    assert world.evictions
    await eventually(lambda: world.charged > 300 - 128)
    assert await asyncio.gather(*(world.invoke(of) for of in functions)) == ["done"] * 16


async def test_one_whose_memory_is_in_use_waits_and_is_refused_with_the_reason(make: Make) -> None:
    world = await make()
    await world.still(C)
    calls = [await world.busy(A), await world.busy(B)]
    with pytest.raises(Throttled, match=r"no memory was free within 0\.1 s") as refused:
        await world.invoke(C, wait=0.1)
    assert refused.value.reason == "memory"
    assert world.pool._ledger.waiting == 0
    assert world.charge(C).size == STILL * MB
    nobodys_patience_ends(world.pool)
    waiting = asyncio.create_task(world.invoke(C))
    await asyncio.sleep(0.05)
    assert world.pool.stats(C.key).waiting == 1
    world.gate.set()
    assert await asyncio.gather(*calls, waiting) == ["done"] * 3
    assert (world.evictions, len(world.driver.created)) == (0, 3)


async def test_what_is_in_its_grace_is_frozen_at_once_for_who_waits_and_not_evicted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make()
    monkeypatch.setattr(world.pool._freezer, "_grace", 60.0)
    await world.invoke(A)
    await world.invoke(B)
    assert world.charged == 512
    assert await world.invoke(C) == "done"
    assert (world.evictions, world.charge(C).size) == (0, 256 * MB)
    assert world.charge(A).is_shrunk


async def test_the_provisioned_ones_stand_still_and_keep_their_memory(make: Make) -> None:
    world = await make(budget=1000)
    kept = revision("kept", scale={"min": 2, "max": 9})
    await world.still(kept, instances=3)
    await eventually(lambda: world.charged == 512 + STILL)
    full = [instance for instance in world.instances(kept) if instance.charge and not instance.charge.is_shrunk]
    assert len(full) == 2
    calls = [await world.busy(kept), await world.busy(kept)]
    assert {instance for instance in world.instances(kept) if instance.executing} == set(full)
    assert world.charged == 512 + STILL
    world.gate.set()
    await asyncio.gather(*calls)
    world.driver.sandboxes[full[0].id].task.cancel()  # type: ignore[union-attr]
    await eventually(lambda: not any(i.charge.is_shrunk for i in world.instances(kept)[:2] if i.charge))
    await eventually(lambda: world.charged in (512, 512 + STILL))


async def test_a_function_that_waits_long_comes_before_the_next_call_of_a_busy_one(make: Make) -> None:
    world = await make()
    small, large = revision("small", 300, scale={"max": 2}), revision("large", 600)
    stop = False

    async def stream() -> None:
        while not stop:
            await world.invoke(small, 0.02)

    streams = [asyncio.create_task(stream()) for _ in range(4)]
    await eventually(lambda: world.pool.stats(small.key).executing == 2)
    assert await world.invoke(large) == "done"
    stop = True
    await asyncio.gather(*streams)


async def test_one_that_cannot_be_thawed_goes_and_another_takes_the_call(make: Make) -> None:
    world = await make()
    await world.still(A)
    world.driver.thaw_error = OSError("it does not thaw")
    assert await world.invoke(A) == "done"
    assert len(world.driver.created) == 2
    await eventually(lambda: len(world.instances(A)) == 1)


async def test_a_caller_who_goes_while_it_is_thawed_leaves_the_slot_free(make: Make) -> None:
    world = await make()
    await world.still(A)
    world.driver.freeze_seconds = 0.2
    call = asyncio.create_task(world.invoke(A))
    await eventually(lambda: world.pool.stats(A.key).busy == 1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert world.pool.stats(A.key).idle == 1
    world.driver.freeze_seconds = 0.0
    assert await world.invoke(A) == "done"


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_comes_the_budget_holds_and_everybody_is_answered_or_refused(make: Make, seed: int) -> None:
    chance = random.Random(seed)  # the seed stands in the test's name
    world = await make(budget=700)
    world.driver.freeze_seconds = chance.choice([0.0, 0.003])
    functions = [revision(f"f{n}", chance.choice([128, 200, 300]), scale={"max": 6}) for n in range(8)]
    functions.append(revision("kept", 128, scale={"min": 1, "max": 3}))
    await world.pool.scale(functions[-1], 1)
    outcomes: list[Any] = []

    async def caller() -> None:
        for _ in range(25):
            of = chance.choice(functions)
            try:
                outcomes.append(
                    await world.invoke(of, chance.choice([0.0, 0.002, 0.03]), wait=chance.choice([0.05, 5]))
                )
            except Throttled as refused:
                outcomes.append(refused.reason)
            if chance.random() < 0.1:
                await world.pool.scale(chance.choice(functions[:-1]), 0)
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.02, 0.05]))

    async with asyncio.timeout(60):
        await asyncio.gather(*(caller() for _ in range(8)))
    assert len(outcomes) == 200
    assert sum(isinstance(outcome, float) for outcome in outcomes) > 100, outcomes
    await eventually(lambda: not world.pool._ledger.waiting)


# What is spare


async def test_what_is_spare_is_charged_and_goes_first_for_who_needs_it(make: Make) -> None:
    world = await make()
    world.driver.spares = 100 * MB
    charged = world.pool._ledger.charged
    await eventually(lambda: charged[Kind.STEM] == 100 * MB)
    world.driver.spares = 90 * MB
    assert (await world.pool.usage()).charged_bytes[Kind.STEM] == 90 * MB
    call = await world.busy(A)
    assert world.driver.drops == 0
    assert await asyncio.gather(world.busy(B)) is not None
    assert (world.driver.drops, world.pool._ledger.evictions[Kind.STEM], charged[Kind.STEM]) == (1, 1, 0)
    world.gate.set()
    await call


async def test_what_is_spare_and_has_no_room_goes(make: Make) -> None:
    world = await make()
    calls = [await world.busy(A), await world.busy(B)]
    world.driver.spares = 200 * MB
    world.pool._spares.update()
    await eventually(lambda: world.driver.drops == 1)
    assert world.pool._ledger.charged[Kind.STEM] == 0
    world.driver.spares = 50 * MB
    world.pool._spares.update()
    assert world.pool._ledger.charged[Kind.STEM] == 50 * MB
    world.driver.spares = 300 * MB  # it grew
    world.pool._spares.update()
    await eventually(lambda: world.driver.drops == 2)
    await eventually(lambda: world.pool._ledger.charged[Kind.STEM] == 0)
    world.gate.set()
    await asyncio.gather(*calls)
