"""Claims: slots that were free at once, for callers who are called back. Real sockets over the fake driver."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from faas.errors import BadFunctionResponse, InstanceExited, OutOfMemory, TimedOut
from faas.leases import Claim, HttpRequest, Invocation, InvocationResult, KnownHead, Report, Trigger
from faas.metrics import Metrics
from faas.protocol import LogQuery, Revision, RevisionKey
from faas.spec import Interface, parse
from tests.support.fake_driver import FakeDriver, FakeSandbox, OutOfMemoryKill, Program, eventually, lambda_program
from tests.support.patience import at_rest
from worker.claim import PoolClaim
from worker.drivers.base import Exit
from worker.instance import Instance
from worker.pool import Pool

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"


class Answer:
    """What came. Implements `faas.leases.Answering`."""

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        self.status = 0
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.body = bytearray()
        self.error: BaseException | None = None
        self.ends = 0
        self.seconds = 0.0  # where it came at once
        self._on_end = on_end
        self._over = asyncio.Event()

    def whole(self, head: KnownHead, body: bytes, seconds: float) -> None:
        self.head(head.status, head.fields)
        self.data(body)
        self.seconds = seconds
        asyncio.get_running_loop().call_soon(self.end, None)  # then the slot is free again

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status, self.headers = status, tuple(headers)

    def data(self, piece: bytes) -> None:
        assert self.status, "no body before its head"
        self.body += piece

    def end(self, error: BaseException | None) -> None:
        self.error = error
        self.ends += 1
        self._over.set()
        self._on_end()

    async def over(self) -> Answer:
        async with asyncio.timeout(10):
            await self._over.wait()
        return self


def instance_of(claim: Claim) -> Instance:
    assert isinstance(claim, PoolClaim)
    return claim._instance


class World:
    """A pool with one function, made of `program` or of a server's `handle`."""

    def __init__(self, folder: Path, program: Program | None = None, handle: Handle | None = None, **keys: Any) -> None:
        async def serve(sandbox: FakeSandbox) -> None:
            assert handle is not None
            await sandbox.serve(handle)
            await asyncio.Event().wait()

        self.instances = keys.pop("instances", 1)
        self.driver = FakeDriver({"it": program or serve})
        self.pool = Pool(self.driver, folder / "logs", Metrics("test"))
        interface = Interface.LAMBDA if program is not None else Interface.HTTP
        spec = parse({"name": "it", "entrypoint": ["it"], **keys})
        self.revision = Revision(RevisionKey("default", "it", 1), spec, "it@sha256:" + "0" * 64, interface)
        self._reports: list[Report] = []
        self.pool.report_to(lambda key, reports: self._reports.extend(reports))

    async def __aenter__(self) -> World:
        await self.pool.open()
        await self.pool.scale(self.revision, self.instances)
        await eventually(lambda: self.stats.idle == self.instances)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close(0)
        assert self.driver.sandboxes == {}

    @property
    def stats(self) -> Any:
        return self.pool.stats(self.revision.key)

    @property
    def reports(self) -> list[Report]:
        """Those of all that has ended."""
        self.pool.settle()
        return self._reports

    def claim(self, request_id: str = "r1") -> Claim:
        claim = self.pool.door(self.revision)(request_id)
        assert claim is not None
        return claim

    def send(self, request: bytes = GET, method: str = "GET") -> tuple[Claim, Answer]:
        claim, answer = self.claim(), Answer()
        claim.send(method, request, answer)
        return claim, answer

    async def get(self, request: bytes = GET, method: str = "GET") -> Answer:
        return await self.send(request, method)[1].over()

    async def fresh(self) -> None:
        """Frozen ones are no claim's: one call that waits makes the instance warm."""
        async with self.pool.acquire(self.revision, Invocation("warm", Trigger.HTTP, 5)) as lease:
            await lease.invoke(b"0")

    def invoke(self, event: Any, request_id: str = "r1") -> tuple[Claim, asyncio.Future[InvocationResult]]:
        claim = self.claim(request_id)
        outcome: asyncio.Future[InvocationResult] = asyncio.get_running_loop().create_future()

        def ended(result: InvocationResult | None, error: BaseException | None) -> None:
            assert (result is None) != (error is None)
            if result is not None:
                outcome.set_result(result)
            elif error is not None:
                outcome.set_exception(error)

        claim.invoke(json.dumps(event).encode(), ended)
        return claim, outcome

    async def messages(self, request_id: str = "r1") -> list[str]:
        query = LogQuery("default", "it", request_id=request_id)
        return [record.message async for record in self.pool.logs(query)]


def answering(answer: bytes, *, close: bool = False) -> Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return handle


# Http functions


async def test_an_answer_comes_piece_by_piece_and_the_slot_is_back_at_its_end(tmp_path: Path) -> None:
    async with World(tmp_path, handle=answering(OK)) as world:
        free_at_end: list[int] = []
        claim, answer = world.claim(), Answer(lambda: free_at_end.append(world.stats.executing))
        assert instance_of(claim).id == world.driver.created[0].id
        claim.send("GET", GET, answer)
        assert world.stats.executing == 1
        await answer.over()
        assert (answer.status, answer.body, answer.error, answer.ends) == (200, b"ok", None, 1)
        assert answer.headers == ((b"Content-Length", b"2"),)
        assert free_at_end == [0]
        assert world.reports == [claim.report]
        assert claim.report is not None
        assert claim.report.init_seconds is not None
        messages = await world.messages()
        assert [message.split()[0] for message in messages] == ["START", "END", "REPORT"]


async def test_a_claim_is_made_at_the_end_of_the_one_before_over_the_same_connection(tmp_path: Path) -> None:
    """Also from inside `end`, which is called while what came is still in hand."""
    connections: list[object] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while line := await reader.readuntil(b"\r\n\r\n"):
            target = line.split()[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))

    async with World(tmp_path, handle=handle) as world:
        done, got = asyncio.Event(), []

        def go_on(number: int) -> None:
            if number == 50:
                done.set()
                return
            tasks = len(asyncio.all_tasks())

            def ended() -> None:
                got.append(answer.body)
                go_on(number + 1)

            answer = Answer(ended)
            world.claim().send("GET", b"GET /%d HTTP/1.1\r\n\r\n" % number, answer)
            assert len(asyncio.all_tasks()) == tasks

        go_on(0)
        async with asyncio.timeout(10):
            await done.wait()
        assert got == [b"/%d" % number for number in range(50)]
        assert len(connections) == 1


async def test_there_is_no_claim_where_somebody_would_have_to_wait(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            await go_on.wait()
            writer.write(OK)

    async with World(tmp_path, handle=handle) as world:
        other = Revision(RevisionKey("default", "it", 2), world.revision.spec, world.revision.image, Interface.HTTP)
        assert world.pool.door(other)("r0") is None  # no instance of it
        _, answer = world.send()
        assert world.pool.door(world.revision)("r2") is None  # its one slot is taken
        waited = asyncio.get_running_loop().create_task(_leased(world))
        await eventually(lambda: world.stats.waiting == 1)
        go_on.set()
        await answer.over()
        assert world.pool.door(world.revision)("r3") is None  # the slot went to the one who waited
        assert await waited == b"ok"
        assert (await world.get()).body == b"ok"


async def _leased(world: World) -> bytes:
    async with world.pool.acquire(world.revision, Invocation("waits", Trigger.HTTP, 5)) as lease:
        response = await lease.request(HttpRequest("GET", "/", (("Host", "it"),)))
        return b"".join([piece async for piece in response.body])


async def test_several_requests_at_once_open_connections_of_their_own(tmp_path: Path) -> None:
    inside, all_there = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal inside
        while await reader.readuntil(b"\r\n\r\n"):
            inside += 1
            if inside == 8:
                all_there.set()
            await all_there.wait()
            writer.write(OK)

    async with World(tmp_path, handle=handle, concurrency=8) as world:
        answers = [world.send()[1] for _ in range(8)]
        assert world.pool.door(world.revision)("r9") is None
        assert [(await answer.over()).body for answer in answers] == [b"ok"] * 8
        assert (await world.get()).body == b"ok"


async def test_a_connection_that_closes_just_when_it_is_used_is_tried_again_on_a_fresh_one(tmp_path: Path) -> None:
    async with World(tmp_path, handle=answering(OK, close=True)) as world:
        for _ in range(5):
            assert (await world.get()).body == b"ok"
        assert world.stats.idle == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection without an answer"),
        (b"nonsense\r\n\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok", "broke off its answer"),
        (
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "upgrade that nobody asked for",
        ),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "did not answer in HTTP/1.1"),
        (b"HTTP/1.1 700 No\r\nContent-Length: 0\r\n\r\n", "answered with status 700"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n", "more than 256 header fields"),
    ],
)
async def test_what_is_no_answer_is_said_so_and_the_instance_lives_on(
    tmp_path: Path, answer: bytes, words: str
) -> None:
    async with World(tmp_path, handle=answering(answer, close=True)) as world:
        broken = await world.get()
        assert isinstance(broken.error, BadFunctionResponse)
        assert words in broken.error.message
        assert (broken.ends, world.stats.idle) == (1, 1)
        assert world.reports[0].failed


@pytest.mark.parametrize(
    ("answer", "method", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 None\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Late: 1\r\n\r\n", "GET", b"ok"),
        (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", "GET", b"ok"),
        (OK + b"HTTP/1", "GET", b"ok"),
    ],
)
async def test_every_framing_is_understood_and_nothing_beyond_it_is_anybodys(
    tmp_path: Path, answer: bytes, method: str, body: bytes
) -> None:
    async with World(tmp_path, handle=answering(answer)) as world:
        for _ in range(3):
            got = await world.get(b"%b / HTTP/1.1\r\n\r\n" % method.encode(), method)
            assert (got.error, got.body) == (None, body)
            assert len(got.headers) <= 1


async def test_a_request_over_its_time_limit_ends_and_its_instance_is_killed(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nslow")
        await asyncio.Event().wait()

    async with World(tmp_path, handle=handle, timeout=1) as world:
        late = await world.get()
        assert isinstance(late.error, TimedOut)
        assert late.error.message == "Task timed out after 1.00 seconds"
        assert (late.status, late.body) == (200, b"slow")
        await eventually(lambda: world.driver.created[0].id not in world.driver.sandboxes)
        assert "Status: timeout" in (await world.messages())[-1]


async def test_an_instance_that_ends_in_a_request_is_told_from_a_broken_answer(tmp_path: Path) -> None:
    async with World(tmp_path, handle=answering(b"")) as world:
        _, answer = world.send()
        await asyncio.sleep(0.01)
        world.driver.created[0].ended(Exit(3))
        await answer.over()
        assert isinstance(answer.error, InstanceExited)
        assert "exit status 3" in answer.error.message


async def test_who_abandons_a_request_leaves_the_one_slot_to_the_function_until_its_answer(tmp_path: Path) -> None:
    go_on, asked = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            asked.set()
            await go_on.wait()
            writer.write(OK)

    async with World(tmp_path, handle=handle) as world:
        claim, answer = world.send()
        await asked.wait()
        claim.pause()
        claim.abandon()
        await asyncio.sleep(0.02)
        assert world.stats.executing == 1
        go_on.set()
        await eventually(lambda: world.stats.executing == 0)
        assert answer.ends == 0
        assert claim.report is not None
        assert not claim.report.failed


async def test_who_abandons_an_answer_that_streams_cuts_it_off(tmp_path: Path) -> None:
    cut = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        if await reader.read() == b"":
            cut.set()

    async with World(tmp_path, handle=handle) as world:
        claim, answer = world.send()
        await eventually(lambda: answer.body == b"ok")
        claim.abandon()
        assert world.stats.executing == 0
        async with asyncio.timeout(5):
            await cut.wait()
        assert answer.ends == 0


async def test_who_pauses_an_answer_stops_the_function(tmp_path: Path) -> None:
    written = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (40 << 20))
        for _ in range(640):
            writer.write(bytes(65_536))
            await writer.drain()
            written += 65_536

    async with World(tmp_path, handle=handle) as world:
        claim, answer = world.send()
        claim.pause()
        assert await at_rest(lambda: written) < 30 << 20
        claim.resume()
        assert len((await answer.over()).body) == 40 << 20


# Functions of the Runtime API


async def modes(sandbox: FakeSandbox, event: Any) -> Any:
    match event:
        case "raise":
            raise ValueError("no")
        case "memory":
            raise OutOfMemoryKill
        case "exit":
            raise SystemExit(3)
        case "sleep":
            await asyncio.sleep(60)
        case "nap":
            await asyncio.sleep(0.05)
    sandbox.print(f"got {event}")
    return event


async def test_an_event_is_answered_without_a_task_and_its_lines_are_in_order(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await world.fresh()
        tasks = len(asyncio.all_tasks())
        claim, outcome = world.invoke({"n": 1})
        assert len(asyncio.all_tasks()) == tasks
        assert await outcome == InvocationResult(b'{"n": 1}')
        assert world.stats.executing == 0
        assert world.reports[-1] is claim.report
        messages = await world.messages()
        assert messages[0] == "START RequestId: r1 Version: 1"
        assert messages[1:3] == ["got {'n': 1}", "END RequestId: r1"]
        assert messages[3].startswith("REPORT RequestId: r1\tDuration: ")


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        ("memory", OutOfMemory, "limit of 128 MB"),
        ("exit", InstanceExited, "exit status 3"),
        ("sleep", TimedOut, "timed out after 1.00 seconds"),
    ],
)
async def test_what_goes_wrong_is_told_as_a_lease_tells_it(
    tmp_path: Path, event: str, error: type[Exception], words: str
) -> None:
    async with World(tmp_path, lambda_program(modes), timeout=1) as world:
        await world.fresh()
        claim, outcome = world.invoke(event)
        with pytest.raises(error, match=words):
            await outcome
        assert claim.report is not None
        assert claim.report.failed
        assert world.stats.executing == 0


async def test_an_error_that_the_function_reports_is_its_answer(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await world.fresh()
        result = await world.invoke("raise")[1]
        assert result.error_type == "ValueError"


async def test_who_claims_at_the_end_of_an_event_has_the_instance_before_it_comes_to_rest(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await world.fresh()
        loop, busy = asyncio.get_running_loop(), list[int]()
        outcome: asyncio.Future[InvocationResult] = loop.create_future()

        def second(result: InvocationResult | None, error: BaseException | None) -> None:
            busy.append(world.stats.busy)
            outcome.set_result(result or InvocationResult(b"", error_type="Failed"))

        def first(result: InvocationResult | None, error: BaseException | None) -> None:
            claim = world.claim("r2")
            busy.append(world.stats.busy)
            assert world.pool.door(world.revision)("r3") is None  # it was the only slot
            claim.invoke(b"2", second)

        world.claim("r1").invoke(b"1", first)
        assert json.loads((await outcome).payload) == 2
        assert busy == [1, 1]
        assert (world.stats.busy, world.stats.idle) == (0, 1)  # nobody took it the second time
        assert len(world.reports) == 3  # with the one that made it warm


async def test_who_has_waited_in_the_pool_comes_before_who_claims_at_the_end_of_an_event(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await world.fresh()
        claims = list[Claim | None]()
        world.claim("r1").invoke(b'"nap"', lambda result, error: claims.append(world.pool.door(world.revision)("r2")))
        waits = asyncio.create_task(world.fresh())
        await eventually(lambda: bool(claims))
        assert claims == [None]
        await waits


async def test_an_event_that_was_never_taken_goes_to_another_instance(tmp_path: Path) -> None:
    """The instance's end is not seen before the event is offered to it."""
    async with World(tmp_path, lambda_program(modes), instances=2) as world:
        await world.fresh()
        claim = world.claim()
        got: list[Any] = []
        chosen = world.driver.sandboxes[instance_of(claim).id]
        for writer in chosen.writers:
            writer.transport.abort()
        chosen.exited.set_result(Exit(137, 9))
        claim.invoke(b'"again"', lambda result, error: got.append((result, error)))
        await eventually(lambda: bool(got))
        assert got == [(InvocationResult(b'"again"'), None)]
        assert instance_of(claim).id != chosen.id


async def test_who_abandons_an_event_hears_nothing_and_the_function_works_on(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await world.fresh()
        claim, outcome = world.invoke("nap")
        claim.abandon()
        assert world.stats.executing == 1
        await eventually(lambda: world.stats.executing == 0)
        assert not outcome.done()
        assert (await world.messages())[1] == "got nap"


async def test_an_instance_that_stands_still_is_no_claims(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await eventually(lambda: world.driver.created[0].is_frozen)
        assert world.pool.door(world.revision)("r1") is None
        await world.fresh()
        assert await world.invoke(1)[1] == InvocationResult(b"1")


async def test_a_claim_that_is_out_is_waited_for_when_the_pool_closes(tmp_path: Path) -> None:
    async with World(tmp_path, lambda_program(modes)) as world:
        await world.fresh()
        _, outcome = world.invoke("nap")
        await world.pool.close(5)
        assert await outcome == InvocationResult(b'"nap"')
        assert world.pool.door(world.revision)("r2") is None


async def streams(sandbox: FakeSandbox) -> int:
    """Streams 30 MB to each event."""
    runtime = await sandbox.runtime()
    while True:
        request_id, event = await runtime.next()
        if event == 0:
            await runtime.respond(request_id, event)
            continue
        path = f"/2018-06-01/runtime/invocation/{request_id}/response"
        fields = "Transfer-Encoding: chunked\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n"
        runtime.writer.write(f"POST {path} HTTP/1.1\r\n{fields}\r\n".encode())
        for _ in range(480):
            runtime.writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
            await runtime.writer.drain()
        runtime.writer.write(b"0\r\n\r\n")
        await runtime.answer()


@pytest.mark.parametrize("begun", [False, True], ids=["before it begins", "in its midst"])
async def test_who_abandons_an_event_that_is_streamed_drops_its_pieces(tmp_path: Path, begun: bool) -> None:
    async with World(tmp_path, streams) as world:
        await world.fresh()
        got: list[Any] = []
        claim = world.claim()
        claim.invoke(b"1", lambda result, error: got.append((result, error)), got.append)
        if begun:
            await eventually(lambda: len(got) == 1)
        claim.abandon()
        await eventually(lambda: world.stats.executing == 0)
        assert len(got) == begun
        assert claim.report is not None
        assert not claim.report.failed


@pytest.mark.parametrize("http", [False, True], ids=["an event", "a request"])
async def test_who_abandons_what_was_never_sent_gives_the_slot_back(tmp_path: Path, http: bool) -> None:
    world = World(tmp_path, handle=answering(OK)) if http else World(tmp_path, lambda_program(modes))
    async with world:
        if not http:
            await world.fresh()
        claim = world.claim()
        assert world.stats.executing == 1
        claim.abandon()
        claim.abandon()
        assert world.stats.executing == 0
