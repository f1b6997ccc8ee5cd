"""Lane processes: what is lent to them, what is believed of what they say, and what goes to the main one instead."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop

from faas.auth import TokenFile
from faas.crowd import Crowd
from faas.errors import FaasError, InstanceExited, InvalidInput
from faas.leases import Invocation, Report, Trigger
from faas.metrics import Metrics
from faas.processes import check_processes, of_one_client
from faas.protocol import Revision, RevisionKey
from faas.proxies import TrustedProxies
from faas.server.lanes.fleet import Fleet, Member
from faas.server.lanes.process import Newcomer
from faas.spec import Interface, parse
from gateway.lane.plans import Place
from gateway.lanes import desk
from gateway.lanes.desk import Desk
from gateway.lanes.outpost import Outpost, Table, Wanted, told_function
from gateway.lanes.tally import Accounts, LaneCounters
from tests.support.data_path import TOKEN, data_path, passage_of, put, revision, sample
from tests.support.fake_driver import FakeDriver, FakeSandbox, eventually
from tests.support.fake_worker import FakeWorker, echo
from tests.unit.test_claim import GET, OK, Answer
from worker.borrowed import Borrower, error_of, error_told
from worker.http_connection import BrokenConnection
from worker.lending import LendingPool, Loan, share

SLOTS = 6
REQUEST = b"GET /function/web/x HTTP/1.1\r\nHost: a\r\n\r\n"
WEB = revision("web", interface=Interface.HTTP, concurrency=SLOTS, scale={"max": 1})


@pytest.mark.parametrize(
    ("slots", "processes", "held", "free", "most", "expected"),
    [
        (100, 4, 0, 100, 1000, 25),
        (100, 4, 20, 100, 1000, 5),
        (100, 4, 25, 100, 1000, 0),
        (100, 4, 30, 100, 1000, 0),
        (100, 4, 0, 3, 1000, 3),
        (100, 4, 0, 100, 2, 2),
        (2, 4, 0, 2, 1000, 1),
        (2, 4, 1, 1, 1000, 0),
        (0, 4, 0, 0, 1000, 0),
    ],
)
def test_a_lane_gets_its_part_of_what_is_free(
    slots: int, processes: int, held: int, free: int, most: int, expected: int
) -> None:
    assert share(slots, processes, held, free, most) == expected


def test_as_many_processes_as_twice_the_cpus_and_none_with_tls() -> None:
    check_processes(1, tls=True)
    check_processes(2, tls=False)
    most = 2 * (os.cpu_count() or 1)
    for processes in (0, -1, most + 1):
        with pytest.raises(InvalidInput, match=f"1 to {most}"):
            check_processes(processes, tls=False)
    with pytest.raises(InvalidInput, match="TLS"):
        check_processes(2, tls=True)


@pytest.mark.parametrize("most", [1, 2, 7, 256, 10_000])
@pytest.mark.parametrize("processes", [1, 2, 3, 16])
def test_one_client_has_no_more_connections_to_all_processes_than_to_one(most: int, processes: int) -> None:
    lane, main = of_one_client(most, processes)
    assert main >= 1
    assert (processes - 1) * lane + main <= max(most, processes)
    assert of_one_client(0, processes) == (0, 0)


# What is lent


class Lender:
    """A pool with one http function of `SLOTS` slots, and a borrower that is told of it without a process between."""

    def __init__(self, folder: Path, handle: Any) -> None:
        async def serve(sandbox: FakeSandbox) -> None:
            await sandbox.serve(handle)
            await asyncio.Event().wait()

        self.pool = LendingPool(FakeDriver({"it": serve}), folder / "logs", Metrics("test"))
        spec = parse({"name": "it", "entrypoint": ["it"], "concurrency": SLOTS, "timeout": 3})
        self.revision = Revision(RevisionKey("default", "it", 1), spec, "it@sha256:" + "0" * 64, Interface.HTTP)
        self._reports: list[Report] = []
        self.pool.report_to(lambda key, reports: self._reports.extend(reports))
        self.borrower = Borrower(self)
        self.pool.recalled = lambda loan: self.borrower.recall(loan.id)

    def lend(self, most: int = SLOTS) -> Loan:
        loan = self.pool.lend(1, self.revision, 1, most)
        assert loan is not None
        self.borrower.take(loan.id, self.revision, loan.slots)
        return loan

    @property
    def failed(self) -> list[bool]:
        """Of each report so far."""
        self.pool.settle()
        return [report.failed for report in self._reports]

    @property
    def executing(self) -> int:
        return self.pool.stats(self.revision.key).executing

    async def ask(self, request_id: str = "r") -> Answer:
        claim = self.borrower.door(self.revision)(request_id)
        assert claim is not None
        answer = Answer()
        claim.send("GET", GET, answer)
        return await answer.over()

    # `worker.borrowed.Main`

    async def connect(self, loan: int) -> socket.socket:
        return await self.pool.connect(self.pool.loan(1, loan))

    async def why(self, loan: int, request_id: str, seconds: float, broken: BrokenConnection) -> BaseException:
        found = self.pool.loan(1, loan)
        told = error_told(await self.pool.broken(found, request_id, seconds, broken.reason, broken.no_listener))
        return error_of(told)

    async def late(self, loan: int, request_id: str, seconds: float) -> None:
        self.pool.late(self.pool.loan(1, loan), request_id, seconds)

    def tell_soon(self) -> None: ...

    def tell_now(self) -> None:
        for number, begun, ended, back in self.borrower.told():
            loan = self.pool.loan(1, number)
            self.pool.begun(loan, begun)
            for request_id, seconds in ended:
                self.pool.ended(loan, request_id, seconds)
            if back:
                self.pool.give_back(loan, back)


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(OK)


@asynccontextmanager
async def lending(folder: Path, handle: Any = answers) -> AsyncIterator[Lender]:
    lender = Lender(folder, handle)
    await lender.pool.open()
    await lender.pool.scale(lender.revision, 1)
    await eventually(lambda: lender.pool.stats(lender.revision.key).idle == 1)
    try:
        yield lender
    finally:
        await lender.pool.close(1)


async def test_a_slot_has_one_owner_and_is_the_main_process_again_when_it_needs_it(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        lender.lend(4)
        own = [lender.pool.door(lender.revision)(f"own{number}") for number in range(SLOTS - 4)]
        assert None not in own
        assert lender.executing == SLOTS
        theirs = [lender.borrower.door(lender.revision)(f"their{number}") for number in range(5)]
        assert [claim is not None for claim in theirs] == [True] * 4 + [False]
        assert lender.pool.door(lender.revision)("late") is None  # it is needed here: all are to come back
        assert lender.executing == SLOTS, "but they are in use"
        assert lender.pool.lend(1, lender.revision, 1, SLOTS) is None
        for claim in theirs:
            if claim is not None:
                claim.abandon()
        assert (lender.executing, lender.pool.lent) == (SLOTS - 4, 0)
        assert lender.pool.door(lender.revision)("late") is not None
        for mine in own:
            assert mine is not None
            mine.abandon()


async def test_who_waits_for_a_slot_here_gets_one_that_a_lane_does_not_use(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        lender.lend()
        assert lender.executing == SLOTS
        async with asyncio.timeout(5), lender.pool.acquire(lender.revision, Invocation("w", Trigger.HTTP, 5)):
            assert lender.pool.lent == 0


async def test_what_runs_in_a_lent_slot_is_billed_once_and_what_is_not_used_comes_back(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        lender.lend()
        for number in range(3):
            answer = await lender.ask(f"r{number}")
            assert (answer.status, bytes(answer.body), answer.error) == (200, b"ok", None)
        lender.tell_now()
        assert lender.failed == [False] * 3
        lender.borrower.rest()
        assert lender.pool.lent == SLOTS, "it was used since the last look"
        lender.borrower.rest()
        assert (lender.pool.lent, lender.executing) == (0, 0)


async def test_an_instance_that_ends_is_told_as_it_is_and_a_late_answer_ends_it(tmp_path: Path) -> None:
    stops = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await stops.wait()

    async with lending(tmp_path, silent) as lender:
        loan = lender.lend()
        asking = asyncio.ensure_future(lender.ask())
        await eventually(lambda: lender.borrower.taken == 1)
        await asyncio.sleep(0.05)
        assert loan.instance.sandbox is not None
        await lender.pool._driver.kill(loan.instance.sandbox)
        answer = await asking
        assert type(answer.error) is InstanceExited
        assert lender.failed == [True]
        await eventually(lambda: lender.pool.lent == 0 and lender.pool.stats(lender.revision.key).idle == 1)
        lender.lend()
        late = await lender.ask("late")
        assert isinstance(late.error, FaasError)
        assert late.error.status == 504
        assert lender.failed == [True, True]
        await eventually(lambda: lender.pool.lent == 0)


async def test_what_a_lane_began_before_it_heard_that_the_instance_goes_has_its_own_time(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.Event().wait()

    async with lending(tmp_path, silent) as lender:
        loan, recalled = lender.lend(), lender.pool.recalled
        early = asyncio.ensure_future(lender.ask("early"))
        await eventually(lambda: lender.borrower.taken == 1)
        lender.pool.recalled = lambda loan: None  # it is on its way
        loan.pool.destroy(loan.instance)
        await asyncio.sleep(0.1)
        late = asyncio.ensure_future(lender.ask("late"))
        await eventually(lambda: lender.borrower.taken == 2)
        recalled(loan)
        for answer in (await early, await late):
            assert isinstance(answer.error, FaasError)
            assert answer.error.status == 504
        assert lender.failed == [True, True]
        await eventually(lambda: lender.pool.lent == 0)


async def test_a_lane_that_is_gone_leaves_its_slots_and_what_ran_there_has_failed(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        loan = lender.lend()
        lender.pool.begun(loan, [("a", 0.0), ("b", 0.0)])
        assert lender.pool.lost(2) == 0
        assert lender.pool.lost(1) == 2
        assert (lender.pool.lent, lender.executing) == (0, 0)
        assert lender.failed == [True, True]


async def test_what_no_lane_says_of_its_slots_is_refused(tmp_path: Path) -> None:
    async with lending(tmp_path) as lender:
        loan = lender.lend(3)
        pool = lender.pool
        for number in (None, "1", True, loan.id + 1, [loan.id]):
            with pytest.raises(ValueError, match="no such loan"):
                pool.loan(1, number)
        with pytest.raises(ValueError, match="no such loan"):
            pool.loan(2, loan.id)
        with pytest.raises(ValueError, match="has not begun"):
            pool.ended(loan, "never", 1.0)
        pool.begun(loan, [("a", 0.0)])
        with pytest.raises(ValueError, match="twice"):
            pool.begun(loan, [("a", 0.0)])
        with pytest.raises(ValueError, match="too many"):
            pool.begun(loan, [(f"x{number}", 0.0) for number in range(5000)])
        for slots in (0, -1, 4):
            with pytest.raises(ValueError, match="more slots"):
                pool.give_back(loan, slots)
        assert (loan.slots, lender.executing) == (3, 3)
        assert pool.lost(1) > 0


# What is counted


def counted(metrics: Metrics, status: str) -> float:
    labels = {"function": "web", "qualifier": "live", "trigger": "http", "status": status}
    return sample(metrics, "faas_invocations_total", **labels)


async def test_what_a_lane_counts_is_counted_here_and_runs_here_until_it_ends() -> None:
    path, metrics = data_path(FakeWorker(echo))
    put(path, WEB)
    accounts = Accounts(path)
    handle = accounts.open(path.router.resolve("default", "web"))
    there = LaneCounters(handle, lambda: None)
    there.running += 3
    there.ended_well(0.0, 0.1, 0.2)
    accounts.hear(json.loads(json.dumps(there.told())))
    load = path.activator.collector.load(WEB.key, path.activator.clock())
    assert (load.in_flight, path.invoker.running) == (2, 2)
    there.ended(None, True, 0.0, 0.1, 0.2)
    there.ended(InstanceExited("gone"), False, 0.0, 0.1, 0.2)
    accounts.hear(json.loads(json.dumps(there.told())))
    assert there.told() is None
    assert (load.in_flight, path.invoker.running) == (0, 0)
    assert load.peak(path.activator.clock(), 60) == 3
    metrics.render()
    assert (counted(metrics, "success"), counted(metrics, "error")) == (1, 2)


async def test_what_ran_in_a_lane_that_is_gone_has_failed() -> None:
    path, metrics = data_path(FakeWorker(echo))
    put(path, WEB)
    accounts = Accounts(path)
    accounts.hear([accounts.open(path.router.resolve("default", "web")), 2, 2, []])
    accounts.lost()
    metrics.render()
    assert (counted(metrics, "error"), path.invoker.running) == (2, 0)


async def test_a_route_that_names_lead_to_no_more_is_known_until_nothing_can_come_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, _ = data_path(FakeWorker(echo))
    put(path, WEB)
    now = path.activator.clock()
    monkeypatch.setattr(path.activator, "clock", lambda: now)
    accounts, route = Accounts(path), path.router.resolve("default", "web")
    handle = accounts.open(route)
    accounts.hear([handle, 1, 1, []])
    accounts.forget()
    now += 100
    accounts.forget()
    accounts.hear([handle, 0, 1, [[0.1, 0.1, ""]]])
    assert accounts.requests == 1
    accounts.forget()
    assert accounts.open(route) == handle
    accounts.forget()
    now += 100
    accounts.forget()
    assert accounts.open(route) == handle + 1
    accounts.hear([handle, 1, 1, []])  # later than any body: it is not counted, and no lane ends for it
    assert path.invoker.running == 0


HOSTILE: list[Any] = [
    None, [], {}, "x", [1, 0, 0], [1, -1, 0, []], [1, True, 0, []], [1, 0, 0, [[0.1, 0.2]]], [1, 10**9, 0, []],
    [1, 0, 0, {}], [1, 0, 0, [[0.1, 0.2, "nonsense"]]], [1, 0, 0, [[float("nan"), 0.2, ""]]], [1, 0, 0, [[-1, 0, ""]]],
    [1, 0, 0, [["0", 0, ""]]], [1, 0, 0, [[10**400, 0, ""]]], ["1", 0, 0, []], [7, 1, 1, []], [1, 0, 0, [[0, 0, []]]],
]  # fmt: skip


@pytest.mark.parametrize("told", HOSTILE)
async def test_what_no_lane_counts_changes_nothing(told: Any) -> None:
    path, metrics = data_path(FakeWorker(echo))
    put(path, WEB)
    accounts = Accounts(path)
    assert accounts.open(path.router.resolve("default", "web")) == 1
    with pytest.raises((ValueError, TypeError, OverflowError)):
        accounts.hear(told)
    metrics.render()
    assert (counted(metrics, "success"), counted(metrics, "error"), path.invoker.running) == (0, 0, 0)


class Process:
    """Of a lane, as its `Member` has it."""

    def __init__(self) -> None:
        self.pid = 1 << 30
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1


@pytest.mark.parametrize(
    "message",
    [
        *({"event": "told", "routes": [told]} for told in HOSTILE),
        *(
            {"event": "told", "routes": [], "loans": loans}
            for loans in (None, 3, [3], [[]], [[9, [], [], 0]], [[1, 2]])
        ),
        {"event": "told"},
    ],
)
async def test_a_lane_that_says_what_none_says_is_ended(message: dict[str, Any], tmp_path: Path) -> None:
    path, _ = data_path(FakeWorker(echo))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with lending(tmp_path) as lender:
        fleet = SimpleNamespace(desk=Desk(path, cast("Place", None)), pool=lender.pool, is_stopping=False)
        process = Process()
        member = Member(cast("Fleet", fleet), 1, cast("asyncio.subprocess.Process", process), ours)
        member._hear({"loans": [], **message})
        assert process.kills == 1
        await member.peer.close()
    theirs.close()


# What goes where


class Main:
    """`gateway.lanes.outpost.Main`, and what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[Wanted] = []
        self.taken: list[tuple[socket.socket, bytes]] = []
        self.helps = False
        self.answer = asyncio.Event()
        self.answer.set()
        self.table: Table

    async def ask(self, wanted: Wanted) -> float:
        self.asked.append(wanted)
        await self.answer.wait()
        if not self.helps:
            return 60.0
        path, _ = data_path(FakeWorker(echo))
        put(path, WEB)
        told = desk.told(path.router.resolve("default", "web"), 1)
        self.table.learn(wanted, told_function(told))
        return 0.0

    def take(self, descriptor: int, data: bytes) -> None:
        self.taken.append((socket.socket(fileno=descriptor), data))


@asynccontextmanager
async def outpost(worker: FakeWorker, main: Main, slots: list[int]) -> AsyncIterator[tuple[Outpost, int]]:
    """With so many slots free as `slots[0]` says."""
    worker.has_room = lambda key: slots[0] > 0  # type: ignore[attr-defined]
    main.table = Table(cast("Any", worker), lambda: None)
    lane = Outpost(main.table, cast("Any", worker), main, "", TrustedProxies())
    lane.begin()
    listening = await asyncio.get_running_loop().create_server(lane.accept, "127.0.0.1", 0)
    try:
        yield lane, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        lane.close()
        for connection, _ in main.taken:
            connection.close()


async def connected(port: int, *pieces: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.02)
    return reader, writer


@pytest.mark.parametrize(
    ("pieces", "asks"),
    [
        ([REQUEST], True),
        ([REQUEST * 3], True),
        ([REQUEST[:35], REQUEST[35:]], True),
        ([b"POST /function/web HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", b"123", b"456"], True),
        ([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"], False),
        ([b"POST /function/web HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"], False),
        ([b"\x16\x03\x01 this is no HTTP"], False),
    ],
)
async def test_what_is_not_served_here_goes_on_with_every_byte_that_came(pieces: list[bytes], asks: bool) -> None:
    main = Main()
    async with outpost(FakeWorker(echo), main, [0]) as (lane, port):
        reader, writer = await connected(port, *pieces)
        await eventually(lambda: len(main.taken) == 1)
        connection, data = main.taken[0]
        rest = b"".join(pieces)[len(data) :]
        assert b"".join(pieces).startswith(data)
        writer.write(b"more")
        connection.setblocking(True)
        connection.settimeout(5)
        got = b""
        while len(got) < len(rest) + 4:
            got += connection.recv(100)
        assert got == rest + b"more"
        connection.sendall(b"from there")
        assert await reader.readexactly(10) == b"from there"
        assert len(main.asked) == asks
        assert not lane.connections
        assert not lane.parked
        writer.close()


def test_a_connection_too_many_is_the_main_processs_before_it_has_said_a_word() -> None:
    async def run() -> None:
        main = Main()
        async with outpost(FakeWorker(echo), main, [1]) as (lane, _):
            made = partial(Newcomer, Crowd(1, TrustedProxies()), lane, is_full=True)
            listening = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
            _, writer = await connected(listening.sockets[0].getsockname()[1], REQUEST)
            await eventually(lambda: len(main.taken) == 1)
            connection, data = main.taken[0]
            connection.setblocking(True)
            connection.settimeout(5)
            assert data + connection.recv(1000) == REQUEST
            writer.close()
            listening.close()

    uvloop.run(run())  # the processes' own loop


async def test_what_is_known_and_has_room_is_served_here_and_asked_for_once() -> None:
    worker, main = FakeWorker(echo), Main()
    main.helps = True
    await worker.scale(WEB, 1)
    async with outpost(worker, main, [1]) as (_, port):
        clients = [await connected(port, REQUEST, REQUEST) for _ in range(3)]
        for reader, writer in clients:
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
    assert (len(main.asked), main.taken) == (1, [])


async def test_those_who_wait_for_the_answer_share_it_and_what_they_send_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.lanes.outpost.ASK_SECONDS", 60.0)  # the answer comes when this test says so
    main = Main()
    main.answer.clear()
    async with outpost(FakeWorker(echo), main, [0]) as (lane, port):
        clients = [await connected(port, REQUEST, b"and more") for _ in range(3)]
        await eventually(lambda: len(lane.parked) == 3)
        clients.pop()[1].close()  # one of them does not wait
        await eventually(lambda: any(one._is_gone for one in lane.parked))
        main.answer.set()
        await eventually(lambda: len(main.taken) >= 2 and not lane.parked)
        assert [data for _, data in main.taken] == [REQUEST + b"and more"] * 2
        assert len(main.asked) == 1
        for _, writer in clients:
            writer.close()


async def test_a_request_beyond_the_slots_here_goes_on_and_after_a_change_names_are_asked_for_anew() -> None:
    worker, main, slots = FakeWorker(echo), Main(), [1]
    main.helps = True
    await worker.scale(WEB, 1)
    async with outpost(worker, main, slots) as (lane, port):
        reader, writer = await connected(port, REQUEST)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        slots[0] = 0
        writer.write(REQUEST + REQUEST)
        await eventually(lambda: len(main.taken) == 1)
        assert main.taken[0][1] == REQUEST + REQUEST
        slots[0] = 1
        asked = len(main.asked)
        lane.forget()
        again, other = await connected(port, REQUEST)
        assert (await again.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert len(main.asked) == asked + 1
        other.close()
        writer.close()


async def test_lane_processes_serve_what_is_plain_and_runs_several_at_once_and_nothing_else() -> None:
    path, _ = data_path(FakeWorker(echo))
    passage = passage_of(path, TokenFile(TOKEN))
    asking = Desk(path, Place(passage, "", lambda host: host == "api.example.com"))
    put(path, WEB)
    put(path, revision("hello"))
    put(path, revision("one", interface=Interface.HTTP))
    put(path, revision("closed", interface=Interface.HTTP, concurrency=5, public=False))
    put(path, revision("ruled", interface=Interface.HTTP, concurrency=5, throttle={"rate": 5}))
    put(path, revision("kept", interface=Interface.HTTP, concurrency=5, scale={"reserved": 1}))
    path.activator.breakers.reserve("default", "kept", 5)
    found = {
        name: asking.route("a", name) is not None
        for name in ("web", "web:v1", "hello", "one", "closed", "ruled", "kept", "nobody")
    }
    assert found == {name: name in ("web", "web:v1") for name in found}
    assert asking.route("API.example.com:80", "web") is None
    path.activator.admit = lambda key: False  # a budget has to be asked each time
    assert asking.route("a", "web") is None
