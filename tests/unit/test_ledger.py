"""The memory ledger: what is decided, and that its books are right whatever happens in whatever order."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faas.errors import ShuttingDown, Throttled
from faas.metrics import Metrics
from faas.protocol import Kind
from tests.support.memory_requests import AnOwner, Resting, Wanted
from worker.memory.admission import LASTING_SECONDS, PATIENCE_SECONDS, plan
from worker.memory.charge import Charge, Readmission, still_size
from worker.memory.eviction import Owner, unprotected, victims
from worker.memory.ledger import Ledger

MB = 1_048_576
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


# Who stands still, and is to go on


def test_one_that_is_to_go_on_waits_for_those_that_run_and_then_others_that_stand_still_go() -> None:
    owner = AnOwner()
    own, sibling = Resting(10, owner, is_shrunk=True), Resting(10, owner, is_shrunk=True)
    ready = Resting(100, owner)
    call = Wanted(90, owner=owner, grows=own)
    resting = [own, sibling, ready]
    assert plan([call], resting, 85, 0, 1000, 0.5, None, {owner}).evicted == []
    made = plan([call], resting, 85, 0, 1000, 0.5)
    assert (made.evicted, made.promised) == ([sibling], [call])  # nobody runs whose memory could be waited for
    made = plan([call], resting, 85, 0, 1000, PATIENCE_SECONDS, None, {owner})
    assert (made.evicted, made.promised) == ([sibling], [call])
    owner.moved_at = 0.1  # one became free since: the queue moves
    assert plan([call], resting, 85, 0, 1000, PATIENCE_SECONDS, None, {owner}).evicted == []
    lasting = plan([call], resting, 85, 0, 1000, LASTING_SECONDS, None, {owner})
    assert (lasting.evicted, lasting.promised) == ([sibling], [call])  # it moves, but does not get shorter
    owner.moved_at = 0.0
    start = Wanted(90, owner=owner)
    assert plan([start], resting, 85, 0, 1000, LASTING_SECONDS).evicted == []  # no start of what is idle


def test_those_that_somebody_waits_for_go_last_and_never_for_a_younger_request() -> None:
    one, two = (Resting(50, AnOwner(name), is_shrunk=True) for name in ("one", "two"))
    older, younger = Wanted(40, 0.0, one.owner, one), Wanted(40, 0.1, two.owner, two)
    made = plan([older, younger], [one, two], 10, 0, 1000, 0.2)
    assert (made.evicted, made.promised) == ([two], [older])
    idle = Resting(50, AnOwner("idle"), rested_at=9.9)
    made = plan([older, younger], [one, two, idle], 10, 0, 1000, 10.0)
    assert made.evicted == [idle]


def test_an_eviction_gives_only_what_would_not_be_free_without_it() -> None:
    about_to_shrink, old = Resting(100, yields=90, rested_at=9.99), Resting(20)
    made = plan([Wanted(100)], [about_to_shrink, old], 10, 90, 1000, 0.5)
    assert (made.evicted, len(made.promised)) == ([], 1)
    assert victims(15, [about_to_shrink, old], AnOwner(), 10.0) == [old]


def test_of_the_provisioned_ones_those_stay_that_are_ready_at_once() -> None:
    owner = AnOwner(provisioned=1)
    ready, still = Resting(100, owner, rested_at=0.0), Resting(10, owner, rested_at=5.0, is_shrunk=True)
    assert unprotected([ready, still], {owner: 2}) == [still]


@pytest.mark.parametrize(
    ("measured", "limit", "charged"), [(9.6, 128, 10.75), (10, 128, 11), (127.5, 128, 128), (0, 64, 1)]
)
def test_what_stands_still_is_charged_what_was_measured_a_little_more_and_never_above_its_limit(
    measured: float, limit: int, charged: float
) -> None:
    assert still_size(int(measured * MB), limit * MB) == charged * MB


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
        self.going_on: dict[Charge, Readmission] = {}  # of the live ones those that wait for the rest of their memory

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
            if verb == "rest":
                charge.rest(yields=number * MB // 2 if number * MB // 2 < charge.size else 0)
            elif verb == "leave":
                charge.leave()
                self.ends(charge)
            elif charge not in self.going_on:
                charge.use()
        elif verb in ("freeze", "go on", "try to go on", "cannot freeze") and self.live:
            self.still(verb, self.live[number % len(self.live)], size)
        elif verb == "needless" and self.going_on:
            self.ledger.forget(self.going_on.popitem()[1])
        elif verb == "die" and self.dying:
            charge = self.dying.pop(number % len(self.dying))
            charge.release()
            charge.release()
        elif verb == "wait":
            self.clock.now += number / 10
            self.ledger.settle()
        await self.settled()

    def still(self, verb: str, charge: Charge, size: int) -> None:
        if charge not in self.ledger.resting or charge in self.going_on:
            return
        if verb == "freeze":
            charge.shrink(size * MB)
        elif verb == "cannot freeze":
            charge.keep()
        elif charge.is_shrunk and verb == "try to go on":
            if charge.try_grow():
                charge.use()
        elif charge.is_shrunk:
            self.going_on[charge] = self.ledger.readmit(charge, lambda: self.went_on(charge), lambda: None)

    def went_on(self, charge: Charge) -> None:
        if self.going_on.pop(charge, None) is not None:
            assert charge.is_held
            assert charge.size == charge.full

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
        if (request := self.going_on.pop(charge, None)) is not None:
            self.ledger.forget(request)

    def check(self) -> None:
        ledger = self.ledger
        held = sum(charge.size for charge in (*self.live, *self.dying))
        assert sum(ledger.charged.values()) == held <= ledger.budget
        assert ledger.free == ledger.budget - held
        assert ledger._leaving == sum(charge.size for charge in self.dying)
        assert set(ledger.resting) <= set(self.live)
        assert ledger.yielding == sum(charge.yields for charge in ledger.resting)
        assert all(0 < charge.size <= charge.full for charge in (*self.live, *self.dying))
        assert all(charge.size == charge.full for charge in self.live if charge not in ledger.resting)
        assert ledger.waiting == len(self.waiting) + len(self.going_on)
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


CHARGES = ["ask", "ask", "try", "give up", "rest", "rest", "use", "leave", "die", "die", "wait"]
STILL = ["freeze", "freeze", "freeze", "cannot freeze", "go on", "go on", "try to go on", "needless"]
verbs = st.sampled_from([*CHARGES, *STILL])


@settings(max_examples=300, deadline=None)
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


stills = st.lists(st.tuples(st.integers(1, 20), st.integers(21, 60), owners), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(stills, st.integers(1, 3))
def test_however_full_it_is_of_what_stands_still_everybody_who_is_called_goes_on_or_makes_another_go_on(
    sizes_owners: list[tuple[int, int, AnOwner]], at_once: int
) -> None:
    """Nobody but those who stand still is there to make room, and all are called at once."""

    async def live() -> None:
        machine = Machine(100)
        for size, full, owner in sizes_owners:
            charge = machine.ledger.try_charge(Kind.INVOKED, full * MB, owner)
            if charge is None:
                break
            machine.started(charge)
            charge.rest()
            charge.shrink(size * MB)
        called = list(machine.live)
        for charge in called:
            machine.still("go on", charge, 0)
        ran: list[Charge] = []
        for _ in range(20 * len(called)):
            await machine.settled()
            machine.check()
            running = [charge for charge in machine.live if charge.is_held]
            assert running or machine.dying or not machine.going_on, "nobody runs, nobody ends, and somebody waits"
            for charge in running[:at_once]:
                ran.append(charge)
                charge.rest()
                charge.shrink(5 * MB)
            while machine.dying:
                machine.dying.pop().release()
        assert not machine.going_on
        assert ran
        assert all(charge in ran or charge.charged == 0 for charge in called)
        assert ran[0] is called[0], "the first who was called runs first"
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
