"""The memory ledger: what is decided, and that its books are right whatever happens in whatever order."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas.errors import ShuttingDown, Throttled
from faas.metrics import Metrics
from faas.protocol import Kind
from worker.eviction import Owner, unprotected, victims
from worker.ledger import PATIENCE_SECONDS, Charge, Ledger, plan

MB = 1_048_576


@dataclass(eq=False)
class AnOwner:
    label: str = "hello"
    provisioned: int = 0


@dataclass(eq=False)
class Resting:
    size: int
    owner: AnOwner | None = field(default_factory=AnOwner)
    rested_at: float = 0.0
    start_seconds: float = 1.0
    kind: Kind = Kind.INVOKED


@dataclass(eq=False)
class Wanted:
    size: int
    since: float = 0.0
    owner: AnOwner | None = field(default_factory=AnOwner)


OWNERS = [AnOwner(f"f{n}") for n in range(4)]
sizes = st.integers(1, 100)
times = st.floats(0, 10)
owners = st.sampled_from(OWNERS)
rests = st.lists(st.builds(Resting, sizes, owners, times, st.floats(0, 5)), max_size=12)
wants = st.lists(st.builds(Wanted, sizes, times, owners), max_size=12).map(
    lambda found: sorted(found, key=lambda request: request.since)
)


# Who gets memory


@given(wants, rests, st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_nothing_is_given_that_is_not_there_and_nothing_twice(
    requests: list[Wanted], resting: list[Resting], free: int, leaving: int, reachable: int
) -> None:
    made = plan(requests, resting, free, leaving, reachable, 10.0)
    assert sum(r.size for r in made.granted) <= free
    room = sum(c.size for c in made.evicted)
    assert sum(r.size for r in (*made.granted, *made.promised)) <= free + leaving + room
    served = [*made.granted, *made.promised]
    assert len(set(map(id, served))) == len(served)
    assert len(set(map(id, made.evicted))) == len(made.evicted)
    assert set(map(id, made.evicted)) <= set(map(id, resting))


@given(wants, rests, st.integers(0, 200), st.integers(0, 200))
def test_who_waits_too_long_is_passed_by_nobody(
    requests: list[Wanted], resting: list[Resting], free: int, leaving: int
) -> None:
    made = plan(requests, resting, free, leaving, 1000, 10.0)
    served = {id(r) for r in (*made.granted, *made.promised)}
    for position, request in enumerate(requests):
        if id(request) not in served and 10.0 - request.since >= PATIENCE_SECONDS:
            assert not any(id(later) in served for later in requests[position:])
            break


@given(st.lists(st.just(40), max_size=12), rests, st.integers(0, 200), st.integers(0, 200))
def test_equal_ones_come_in_the_order_of_their_asking(
    asked: list[int], resting: list[Resting], free: int, leaving: int
) -> None:
    requests = [Wanted(size, n / 100) for n, size in enumerate(asked)]
    made = plan(requests, resting, free, leaving, 1000, 0.5)
    assert [*made.granted, *made.promised] == requests[: len(made.granted) + len(made.promised)]


def test_a_small_one_passes_a_large_one_that_does_not_fit_but_only_for_a_while() -> None:
    large, small = Wanted(100), Wanted(10, since=0.1)
    assert plan([large, small], [], 50, 0, 100, 0.2).granted == [small]
    assert plan([large, small], [], 50, 0, 100, PATIENCE_SECONDS).granted == []


def test_one_that_can_never_fit_keeps_nobody_waiting() -> None:
    huge, small = Wanted(100), Wanted(10, since=0.1)
    assert plan([huge, small], [Resting(20)], 50, 0, 90, 5.0).granted == [small]


def test_nobody_is_evicted_in_vain_but_for_who_waits_long() -> None:
    large, idle = Wanted(100), Resting(20)
    assert plan([large], [idle], 50, 0, 200, 0.5).evicted == []
    assert plan([large], [idle], 50, 0, 200, PATIENCE_SECONDS).evicted == [idle]


def test_what_is_on_its_way_out_is_waited_for_instead_of_evicting_more() -> None:
    first, second = Wanted(100), Wanted(60, since=0.1)
    made = plan([first, second], [Resting(100)], 30, 100, 300, 0.2)
    assert made.promised == [first, second]
    assert len(made.evicted) == 1  # 30 + 100 - 100 = 30 are left for the second
    made = plan([first], [Resting(100)], 30, 70, 300, 0.2)
    assert (made.promised, made.evicted) == ([first], [])


# Who makes room


def test_the_longest_unused_goes_first_the_larger_and_the_quicker_to_start() -> None:
    old, new = Resting(10, rested_at=0.0), Resting(10, rested_at=9.0)
    assert victims(5, [new, old], OWNERS[0], 10.0) == [old]
    large, little = Resting(50), Resting(10)
    assert victims(5, [little, large], OWNERS[0], 10.0) == [large]
    slow, quick = Resting(10, start_seconds=8.0), Resting(10, start_seconds=0.2)
    assert victims(5, [slow, quick], OWNERS[0], 10.0) == [quick]


def test_stems_go_first_and_older_revisions_of_the_same_function_last_and_its_own_never() -> None:
    asking = AnOwner("mine")
    stem = Resting(10, None, rested_at=9.9, start_seconds=5.0, kind=Kind.STEM)
    other = Resting(10, AnOwner("other"), rested_at=5.0)
    older = Resting(10, AnOwner("mine"), rested_at=0.0)
    own = Resting(10, asking, rested_at=0.0)
    everything = [own, older, other, stem]
    assert victims(10, everything, asking, 10.0) == [stem]
    assert victims(20, everything, asking, 10.0) == [stem, other]
    assert victims(30, everything, asking, 10.0) == [stem, other, older]
    assert victims(100, everything, asking, 10.0) == [stem, other, older]


@given(rests, st.integers(1, 300))
def test_no_victim_could_have_been_spared(resting: list[Resting], short: int) -> None:
    chosen = victims(short, resting, AnOwner("asking"), 10.0)
    room = sum(charge.size for charge in chosen)
    if room >= short:
        assert all(room - charge.size < short for charge in chosen)
    else:
        assert len(chosen) == len(resting)


@given(
    st.dictionaries(owners, st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1),
    st.integers(0, 6),
)
def test_the_provisioned_number_is_never_gone_below(counts: dict[AnOwner, tuple[int, int]], kept: int) -> None:
    resting: list[Resting] = []
    held: dict[Owner, int] = {}
    for owner, (idle, busy) in counts.items():
        owner.provisioned = kept
        resting += [Resting(10, owner) for _ in range(idle)]
        held[owner] = idle + busy
    may_go = unprotected(resting, held)
    for owner, (idle, busy) in counts.items():
        gone = sum(charge.owner is owner for charge in may_go)
        assert idle + busy - gone >= min(kept, idle + busy)
        assert gone == min(idle, max(0, idle + busy - kept))
        owner.provisioned = 0


# The books


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_ledger(budget: int = 600) -> tuple[Ledger, Clock]:
    clock = Clock()
    return Ledger(budget * MB, Metrics("test"), clock=clock), clock


class Machine:
    """Instances that live by the ledger: each is started, rests, is used, is evicted or ends, as the test says."""

    def __init__(self, budget: int) -> None:
        self.ledger, self.clock = a_ledger(budget)
        self.waiting: list[asyncio.Task[Charge]] = []
        self.live: list[Charge] = []
        self.dying: list[Charge] = []

    async def step(self, verb: str, number: int, size: int, owner: AnOwner) -> None:
        if verb == "ask":
            request = self.ledger.ask(Kind.INVOKED, size * MB, owner)
            self.waiting.append(asyncio.get_running_loop().create_task(request.charge()))
        elif verb == "try":
            if (charge := self.ledger.try_charge(Kind.STEM, size * MB)) is not None:
                self.started(charge)
        elif verb == "give up" and self.waiting:
            self.waiting.pop(number % len(self.waiting)).cancel()
        elif verb in ("rest", "use", "leave") and self.live:
            charge = self.live[number % len(self.live)]
            getattr(charge, verb)()
            if verb == "leave":
                self.ends(charge)
        elif verb == "die" and self.dying:
            charge = self.dying.pop(number % len(self.dying))
            charge.release()
            charge.release()
        elif verb == "wait":
            self.clock.now += number / 10
            self.ledger.settle()
        await self.settled()

    async def settled(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            self.started(task.result())

    def started(self, charge: Charge) -> None:
        self.live.append(charge)
        charge.may_be_evicted(lambda: self.ends(charge), 1.0)

    def ends(self, charge: Charge) -> None:
        self.live.remove(charge)
        self.dying.append(charge)

    def check(self) -> None:
        ledger = self.ledger
        held = sum(charge.size for charge in (*self.live, *self.dying))
        assert sum(ledger.charged.values()) == held <= ledger.budget
        assert ledger.free == ledger.budget - held
        assert ledger._leaving == sum(charge.size for charge in self.dying)
        assert set(ledger.resting) <= set(self.live)
        assert ledger.waiting == len(self.waiting)
        if not self.live and not self.dying:
            assert ledger.waiting == 0

    async def end(self) -> None:
        """Everybody who waits gets it in the end, and everything is given back."""
        while self.live or self.dying or self.waiting:
            for charge in list(self.live):
                charge.leave()
                self.ends(charge)
            while self.dying:
                self.dying.pop().release()
            self.clock.now += PATIENCE_SECONDS
            self.ledger.settle()
            await self.settled()
            self.check()
        assert self.ledger.free == self.ledger.budget


verbs = st.sampled_from(["ask", "ask", "try", "give up", "rest", "rest", "use", "leave", "die", "die", "wait"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(verbs, st.integers(0, 30), st.integers(1, 60), owners), max_size=60))
def test_whatever_happens_the_budget_holds_no_charge_is_lost_and_nobody_waits_for_ever(
    steps: list[tuple[str, int, int, AnOwner]],
) -> None:
    async def live() -> None:
        machine = Machine(100)
        for step in steps:
            await machine.step(*step)
            machine.check()
        await machine.end()

    asyncio.run(live())


async def test_a_large_one_is_not_starved_by_a_stream_of_small_ones() -> None:
    ledger, clock = a_ledger(1000)
    small = AnOwner("small")
    held = [await ledger.ask(Kind.INVOKED, 100 * MB, small).charge() for _ in range(10)]
    large = ledger.ask(Kind.INVOKED, 900 * MB, AnOwner("large"))
    asking = asyncio.ensure_future(large.charge())
    queue = [asyncio.ensure_future(ledger.ask(Kind.INVOKED, 100 * MB, small).charge())]
    while not asking.done():  # each second the oldest ends, and another comes
        clock.now += 1
        assert clock.now <= 110, "not before all of those end that ran when it came"
        held.pop(0).release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        held += [task.result() for task in queue if task.done()]
        queue = [task for task in queue if not task.done()]
        queue.append(asyncio.ensure_future(ledger.ask(Kind.INVOKED, 100 * MB, small).charge()))
    for task in queue:
        task.cancel()
    await asyncio.gather(*queue, return_exceptions=True)


async def test_an_eviction_is_asked_for_and_its_memory_waited_for() -> None:
    ledger, _ = a_ledger(600)
    gone: list[Charge] = []
    first = await ledger.ask(Kind.INVOKED, 256 * MB, AnOwner("a")).charge()
    with await ledger.ask(Kind.INVOKED, 256 * MB, AnOwner("b")).charge():
        first.may_be_evicted(lambda: gone.append(first), 0.1)
        first.rest()
        request = ledger.ask(Kind.INVOKED, 256 * MB, AnOwner("c"))
        assert gone == [first]
        assert request.promised
        task = asyncio.ensure_future(request.charge(5))
        await asyncio.sleep(0)
        assert not task.done()
        first.release()
        (await task).release()
    assert ledger.evictions[Kind.INVOKED] == 1
    assert ledger.free == ledger.budget


async def test_a_parked_stem_gives_way_by_its_callback() -> None:
    ledger, _ = a_ledger(300)
    stem = ledger.try_charge(Kind.STEM, 100 * MB)
    assert stem is not None
    stem.may_be_evicted(stem.release, 0.2)
    stem.rest()
    charge = await ledger.ask(Kind.INVOKED, 256 * MB, AnOwner()).charge(1)
    assert (ledger.charged[Kind.STEM], ledger.evictions[Kind.STEM]) == (0, 1)
    charge.release()


async def test_more_than_the_budget_is_refused_at_once_and_a_wait_that_is_over_with_the_reason() -> None:
    ledger, _ = a_ledger(600)
    with pytest.raises(Throttled, match=r"601 MB are more than the 600 MB .* \(memory_budget\)") as refused:
        ledger.ask(Kind.JOB, 601 * MB)
    assert refused.value.reason == "memory"
    with await ledger.ask(Kind.SERVICE, 500 * MB).charge():
        with pytest.raises(Throttled, match=r"within 0\.01 s: 200 MB are wanted, .* 600 MB") as refused:
            await ledger.ask(Kind.JOB, 200 * MB).charge(0.01)
        assert refused.value.reason == "memory"
        assert ledger.waiting == 0
        assert ledger.charged[Kind.SERVICE] == 500 * MB
        assert ledger.try_charge(Kind.STEM, 200 * MB) is None
    assert ledger.free == ledger.budget


@pytest.mark.parametrize("first", ["the grant", "the cancellation"])
async def test_who_gives_up_in_the_moment_of_the_grant_gives_it_back(first: str) -> None:
    ledger, _ = a_ledger(600)
    held = await ledger.ask(Kind.JOB, 600 * MB).charge()
    task = asyncio.ensure_future(ledger.ask(Kind.JOB, 600 * MB).charge())
    await asyncio.sleep(0)
    for step in (held.release, task.cancel) if first == "the grant" else (task.cancel, held.release):
        step()
    await asyncio.gather(task, return_exceptions=True)
    assert ledger.free == ledger.budget


async def test_what_has_just_been_granted_counts_as_on_its_way() -> None:
    ledger, _ = a_ledger(600)
    held = await ledger.ask(Kind.JOB, 600 * MB).charge()
    request = ledger.ask(Kind.JOB, 600 * MB)
    assert not request.promised
    held.release()
    assert request.promised
    (await request.charge()).release()


async def test_what_was_kept_for_one_that_gives_up_is_the_next_ones_at_once() -> None:
    ledger, clock = a_ledger(600)
    with await ledger.ask(Kind.INVOKED, 300 * MB).charge():
        large = asyncio.ensure_future(ledger.ask(Kind.INVOKED, 600 * MB).charge())
        await asyncio.sleep(0)
        clock.now += PATIENCE_SECONDS
        small = asyncio.ensure_future(ledger.ask(Kind.INVOKED, 200 * MB).charge())
        await asyncio.sleep(0)
        assert not small.done()
        large.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS / 3):
            (await small).release()


async def test_an_eviction_may_take_others_along_and_a_thousand_are_no_trouble() -> None:
    ledger, _ = a_ledger(1000)
    stems = [ledger.try_charge(Kind.STEM, MB) for _ in range(1000)]
    pairs = list(zip(stems[::2], stems[1::2], strict=True))
    calls = 0

    def end(pair: tuple[Charge, Charge]) -> None:
        nonlocal calls
        calls += 1
        for charge in pair:
            charge.release()

    for first, second in pairs:
        assert first is not None
        assert second is not None
        for charge in (first, second):
            charge.may_be_evicted(partial(end, (first, second)), 0.1)
            charge.rest()
    (await ledger.ask(Kind.INVOKED, 1000 * MB).charge(1)).release()
    assert calls == ledger.evictions[Kind.STEM] == 500


async def test_a_promise_that_another_takes_is_told() -> None:
    ledger, clock = a_ledger(600)
    told: list[str] = []
    busy = [await ledger.ask(Kind.INVOKED, 200 * MB, AnOwner("busy")).charge() for _ in range(3)]
    large = ledger.ask(Kind.INVOKED, 600 * MB, AnOwner("large"))
    small = ledger.ask(Kind.INVOKED, 200 * MB, AnOwner("small"), lambda: told.append("lost"))
    busy[0].leave()
    assert (large.promised, small.promised) == (False, True)
    clock.now += PATIENCE_SECONDS
    ledger.settle()
    assert (small.promised, told) == (False, ["lost"])
    ledger.close(ShuttingDown())
    with pytest.raises(ShuttingDown):
        await large.charge()
    for charge in busy:
        charge.release()
    assert ledger.free == ledger.budget


async def test_the_metrics_say_what_the_books_say() -> None:
    metrics = Metrics("test")
    ledger = Ledger(600 * MB, metrics)

    def look(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert look("faas_memory_budget_bytes") == 600 * MB
    assert {look("faas_memory_charged_bytes", kind=kind) for kind in Kind} == {0}
    assert {look("faas_memory_evictions_total", kind=kind) for kind in Kind} == {0}
    charge = await ledger.ask(Kind.INVOKED, 500 * MB).charge()
    charge.may_be_evicted(charge.release, 0.1)
    charge.rest()
    assert look("faas_memory_charged_bytes", kind="invoked") == 500 * MB
    with await ledger.ask(Kind.JOB, 200 * MB).charge():
        assert look("faas_memory_charged_bytes", kind="invoked") == 0
        assert look("faas_memory_charged_bytes", kind="job") == 200 * MB
        assert look("faas_memory_evictions_total", kind="invoked") == 1
