"""Reserved memory: its function gets it at once, nobody else gets it at all."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas.errors import SpecError
from faas.metrics import Metrics
from faas.protocol import Kind
from tests.support.memory_requests import AnOwner, Resting, Wanted
from worker.memory.admission import PATIENCE_SECONDS, plan
from worker.memory.charge import Charge
from worker.memory.ledger import Ledger, unreserved_least
from worker.memory.reserves import Reserves

MB = 1_048_576
BUDGET = 1000
KEPT = "kept"
LABELS = ["a", "b", "c"]
sizes = st.integers(1, 100)
some_owners = st.sampled_from([AnOwner(label) for label in LABELS])
wants = st.lists(st.builds(Wanted, sizes, st.floats(0, 10), some_owners), max_size=10).map(
    lambda found: sorted(found, key=lambda request: request.since)
)
rests = st.lists(st.builds(Resting, sizes, some_owners, st.floats(0, 10)), max_size=10)
kept = st.dictionaries(st.sampled_from(LABELS), st.integers(1, 200))


@settings(max_examples=300)
@given(wants, rests, kept, st.integers(0, 400), st.integers(0, 200), st.integers(0, 500))
def test_who_is_within_its_reservation_waits_for_nobody_and_nobody_else_gets_into_it(
    requests: list[Wanted], resting: list[Resting], reserved: dict[str, int], more: int, leaving: int, reachable: int
) -> None:
    used: dict[str, int] = {}
    for charge in resting:
        assert charge.owner is not None
        used[charge.owner.label] = used.get(charge.owner.label, 0) + charge.size
    reserves = Reserves(reserved, used)
    free = reserves.unused_bytes + more  # as the ledger keeps it
    made = plan(requests, resting, free, leaving, reachable, 10.0, reserves)
    served = {id(request) for request in (*made.granted, *made.promised)}
    after = reserves.copy()
    for victim in made.evicted:
        assert victim.owner is not None
        after.take(victim.owner.label, -victim.size)
    for request in (*made.granted, *made.promised):
        assert request.owner is not None
        after.take(request.owner.label, request.size)
    given_out = sum(request.size for request in (*made.granted, *made.promised))
    room = sum(victim.size for victim in made.evicted)
    assert free + leaving + room - given_out >= after.unused_bytes, "what is reserved and unused is there"
    for request in requests:
        assert request.owner is not None
        if id(request) not in served:
            assert request.size > after.unused(request.owner.label), "its own memory was kept from it"


def test_an_idle_instance_within_its_reservation_makes_room_for_its_own_function_alone() -> None:
    idle = Resting(100, AnOwner(KEPT))
    reserves = Reserves({KEPT: 100}, {KEPT: 100})
    other, own = Wanted(100), Wanted(100, owner=AnOwner(KEPT))
    assert plan([other], [idle], 0, 0, 1000, 5.0, reserves).evicted == []
    assert plan([own], [idle], 0, 0, 1000, 5.0, reserves).evicted == [idle]
    assert plan([other], [idle], 0, 0, 1000, 5.0, Reserves({KEPT: 99}, {KEPT: 100})).evicted == []
    assert plan(
        [other], [idle, Resting(50, AnOwner(KEPT))], 50, 0, 1000, 5.0, Reserves({KEPT: 50}, {KEPT: 150})
    ).evicted


class Machine:
    """A ledger with a reservation of 400 MB; every other function takes what it can get."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ledger = Ledger(BUDGET * MB, Metrics("test"), clock=lambda: self.now)
        self.ledger.reserve(KEPT, 400 * MB)
        self.kept, self.owners = AnOwner(KEPT), [AnOwner("x"), AnOwner("y")]
        self.waiting: list[asyncio.Task[Charge]] = []
        self.live: list[Charge] = []
        self.dying: list[Charge] = []

    async def step(self, verb: str, number: int, size: int) -> None:
        if verb == "ask":
            request = self.ledger.ask(Kind.INVOKED, size * MB, self.owners[number % 2])
            self.waiting.append(asyncio.get_running_loop().create_task(request.charge()))
        elif verb == "try" and (charge := self.ledger.try_charge(Kind.STEM, size * MB)) is not None:
            self.started(charge)
        elif verb == "kept":
            await self.its_own()
        elif verb in ("rest", "use", "leave") and self.live:
            charge = self.live[number % len(self.live)]
            getattr(charge, verb)()
            if verb == "leave":
                self.ends(charge)
        elif verb == "die" and self.dying:
            self.dying.pop(number % len(self.dying)).release()
        elif verb == "wait":
            self.now += number / 10
            self.ledger.settle()
        for _ in range(3):
            await asyncio.sleep(0)
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            self.started(task.result())

    async def its_own(self) -> None:
        """One more instance of the function with the reservation: four are its own, whatever others do."""
        its = [charge for charge in (*self.live, *self.dying) if charge.owner is self.kept]
        if len(its) >= 4:
            return
        if len(its) % 2:
            charge = self.ledger.try_charge(Kind.INVOKED, 100 * MB, self.kept)
            assert charge is not None
        else:
            request = self.ledger.ask(Kind.INVOKED, 100 * MB, self.kept)
            asked = asyncio.ensure_future(request.charge())
            await asyncio.sleep(0)
            assert asked.done(), "it waited for what is its own"
            charge = asked.result()
        self.started(charge)

    def started(self, charge: Charge) -> None:
        self.live.append(charge)
        charge.may_be_evicted(lambda: self.ends(charge), 1.0)

    def ends(self, charge: Charge) -> None:
        self.live.remove(charge)
        self.dying.append(charge)

    def check(self) -> None:
        held = sum(charge.size for charge in (*self.live, *self.dying))
        others = sum(charge.size for charge in self.live if charge.owner is not self.kept)
        assert sum(self.ledger.charged.values()) == held <= self.ledger.budget
        assert others <= 600 * MB
        its = sum(charge.size for charge in self.live if charge.owner is self.kept)
        assert self.ledger.reserves.unused(KEPT) == 400 * MB - its


verbs = st.sampled_from(["ask", "ask", "try", "kept", "kept", "rest", "rest", "use", "leave", "die", "die", "wait"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(verbs, st.integers(0, 30), st.integers(1, 600)), max_size=60))
def test_whatever_others_do_a_reservation_is_there_at_once(steps: list[tuple[str, int, int]]) -> None:
    async def live() -> None:
        machine = Machine()
        for step in steps:
            await machine.step(*step)
            machine.check()
        for task in machine.waiting:
            task.cancel()
        await asyncio.gather(*machine.waiting, return_exceptions=True)

    asyncio.run(live())


def test_what_cannot_be_reserved_is_refused_with_the_numbers_and_changes_nothing() -> None:
    ledger = Ledger(BUDGET * MB, Metrics("test"))
    assert unreserved_least(BUDGET * MB) == 128 * MB
    ledger.reserve("a", 500 * MB)
    with pytest.raises(SpecError) as refused:
        ledger.reserve("b", 373 * MB)
    assert all(number in refused.value.message for number in ("373 MB", "1000 MB", "500 MB", "128 MB"))
    assert refused.value.key == "scale.reserved"
    ledger.reserve("b", 372 * MB)
    ledger.reserve("a", 0)
    ledger.reserve("b", 800 * MB)
    assert ledger.reserves.unused_bytes == 800 * MB


async def test_a_reservation_makes_idle_ones_of_others_go_at_once_and_busy_ones_when_they_end() -> None:
    clock = [0.0]
    ledger = Ledger(BUDGET * MB, Metrics("test"), clock=lambda: clock[0])
    busy = await ledger.ask(Kind.INVOKED, 600 * MB, AnOwner("busy")).charge()
    idle = await ledger.ask(Kind.INVOKED, 400 * MB, AnOwner("idle")).charge()
    idle.may_be_evicted(idle.release, 1.0)
    idle.rest()
    ledger.reserve(KEPT, 800 * MB)
    assert idle.charged == 0
    its = [ledger.try_charge(Kind.INVOKED, 400 * MB, AnOwner(KEPT)) for _ in range(2)]
    assert its[0] is not None
    assert its[1] is None, "a busy one is not ended"
    other = asyncio.ensure_future(ledger.ask(Kind.INVOKED, 300 * MB, AnOwner("other")).charge())
    clock[0] += PATIENCE_SECONDS * 2
    busy.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not other.done(), "of 600 MB that became free 400 are reserved"
    assert ledger.try_charge(Kind.INVOKED, 400 * MB, AnOwner(KEPT)) is not None
    other.cancel()
