"""Connections in the lane: order, slow and leaving clients, waiting in line, hand-over, draining."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from faas.bodies import BODIES
from faas.doors import Doors
from faas.leases import HttpRequest, HttpResponse, InvocationResult, StreamedResult
from faas.listener import bound, listen
from faas.protocol import Revision
from faas.settings import Address
from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from gateway.data_path import DataPath
from gateway.edge.passage import Passage
from gateway.lane.answer import Answer
from gateway.lane.event_exchange import EventExchange
from tests.conftest import SOAK
from tests.support.data_path import application, data_path, put, revision, sample
from tests.support.fake_driver import eventually
from tests.support.fake_worker import FakeWorker, echo, ok, stream
from tests.support.patience import at_rest
from tests.support.raw_http import LANE, serving, talk

GET = b"GET /function/hello HTTP/1.1\r\nHost: a\r\n\r\n"
KEY = revision().key
PIPELINED = 10_000 if SOAK else 300  # requests on one connection


class Lane:
    """`hello` behind the lane, with so many instances."""

    def __init__(self, worker: FakeWorker, path: DataPath, metrics: Any, port: int) -> None:
        self.worker, self.path, self.metrics, self.port = worker, path, metrics, port

    @property
    def executing(self) -> int:
        return self.worker.stats(KEY).executing

    def counted(self, status: str) -> float:
        labels = {"function": "hello", "qualifier": "live", "trigger": "http", "status": status}
        return sample(self.metrics, "faas_invocations_total", **labels)

    async def until(self, executing: int) -> None:
        async with asyncio.timeout(15):
            while self.executing != executing or (not executing and self.path.invoker.running):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def lane(
    monkeypatch: pytest.MonkeyPatch, worker: FakeWorker, *, instances: int = 1, options: Any = None, **spec: Any
) -> AsyncIterator[Lane]:
    monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", True)
    path, metrics = data_path(worker)
    made = revision(**{"scale": {"max": max(1, instances)}, **spec})
    put(path, made)
    if instances:
        await worker.scale(made, instances)
        await asyncio.sleep(0)
    async with serving(application(path), **RUNNER_OPTIONS | (options or {})) as port:
        yield Lane(worker, path, metrics, port)
    assert path.invoker.running == 0
    assert worker.stats(KEY).executing == 0
    assert BODIES.held == 0


async def opened(port: int, *pieces: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
    return reader, writer


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and body of the next answer."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        return int(head[9:12]), await reader.readexactly(int(fields[b"content-length"]))


class Gated:
    """A function that answers once it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.order: list[str] = []

    async def __call__(self, revision: Revision, event: bytes) -> InvocationResult:
        self.order.append(json.loads(event)["rawPath"])
        await self.may.wait()
        return InvocationResult(event)


async def test_what_breaks_on_our_side_in_a_turn_or_in_an_answer_leaves_nothing_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate)) as served:
        first, one = await opened(served.port, GET)
        await served.until(1)
        second, two = await opened(served.port, GET)
        await asyncio.sleep(0.05)

        def broken(*_: object) -> None:
            raise RuntimeError("ours")

        with monkeypatch.context() as patched:
            patched.setattr(EventExchange, "_go", broken)
            gate.may.set()
            assert (await answer(first))[0] == 200
            assert (await answer(second))[0] == 500
        with monkeypatch.context() as patched:
            patched.setattr(Answer, "answers_plainly", broken)
            third, three = await opened(served.port, GET)
            assert (await answer(third))[0] == 500
        assert served.path.activator.breakers.of(revision()).unused
        assert served.path.activator.ceiling.inside == 0
        for writer in (one, two, three):
            writer.close()


async def test_on_the_last_call_the_next_answer_says_so_and_ends_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", True)
    path, _ = data_path(worker := FakeWorker(echo))
    put(path, made := revision())
    await worker.scale(made, 1)
    app = application(path)
    doors = Doors({"public": app}, None, {"public": app[LANE]})
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"public": listener})
        try:
            request = b"GET /function/hello HTTP/1.1\r\nHost: a\r\n\r\n"
            (used, writer), (idle, other) = await opened(port, request), await opened(port, request)
            assert [(await answer(reader))[0] for reader in (used, idle)] == [200, 200]
            refusing = asyncio.create_task(doors.refuse(hand_over=True))
            await asyncio.sleep(0)  # it has told all connections, and waits
            writer.write(request)
            async with asyncio.timeout(5):
                last = await used.read()
                assert last.startswith(b"HTTP/1.1 200")
                assert b"\r\nConnection: close\r\n" in last
                assert not refusing.done()
                assert await idle.read() == b""
                await refusing
            for one in (writer, other):
                one.close()
        finally:
            await doors.close()


async def test_who_waits_when_time_is_up_is_told_whichever_way_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()  # the worker ends what runs

    async def sleeps(revision: Revision, event: bytes) -> InvocationResult:
        await over.wait()
        return InvocationResult(event)

    async def begins(revision: Revision, request: HttpRequest) -> HttpResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"begun"
            await over.wait()

        if not request.target.endswith("/begins"):
            await over.wait()
        return HttpResponse(200, (("Content-Type", "text/plain"),), body())

    monkeypatch.setattr("tests.support.data_path.BY_THE_LANE", True)
    path, _ = data_path(worker := FakeWorker(sleeps, begins))
    put(path, made := revision())
    put(path, web := revision("web", interface=Interface.HTTP, concurrency=20))
    put(path, revision("starts"))
    for each in (made, web):
        await worker.scale(each, 1)
    await asyncio.sleep(0)
    worker.start_seconds = 60.0
    app = application(path)
    doors = Doors({"public": app}, None, {"public": app[LANE]})
    plain = b"GET /function/%b HTTP/1.1\r\nHost: a\r\n\r\n"
    in_chunks = b"POST /function/%b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    names = b"hello", b"web/late", b"starts"  # an instance each, but for the last, which starts
    with listen(Address("127.0.0.1", 0)) as listener:
        port = bound(listener).port
        await doors.open({"public": listener})
        late = [await opened(port, form % name) for name in names for form in (plain, in_chunks)]
        partly = [await opened(port, form % b"web/begins") for form in (plain, in_chunks)]
        for reader, _ in partly:
            await reader.readuntil(b"begun")
        async with asyncio.timeout(15):
            while path.invoker.running < len(late) + len(partly):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert worker.claimed == 3
        await doors.refuse()
        await path.invoker.close(0.01)
        await doors.close()
        for reader, _ in late:
            status, body = await answer(reader)
            assert (status, json.loads(body)["error"]["code"]) == (503, "ShuttingDown")
            assert await reader.read() == b""
        for reader, _ in partly:
            with suppress(ConnectionResetError):
                assert b"0\r\n" not in await reader.read()  # the last chunk, which would make it look whole
        for _, writer in (*late, *partly):
            writer.close()
        over.set()
        async with asyncio.timeout(15):
            while path.invoker.running:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    assert path.activator.ceiling.inside == 0


async def test_what_is_pipelined_is_answered_in_order_whatever_way_each_request_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [b"GET /function/hello/%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(PIPELINED)]
    asked[200] = (
        b"POST /function/hello/200 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    )
    async with lane(monkeypatch, FakeWorker()) as served:
        reader, writer = await opened(served.port, b"".join(asked))
        for n in range(PIPELINED):
            status, body = await answer(reader)
            assert (status, json.loads(body)["rawPath"]) == (200, f"/{n}")
        writer.close()
        assert served.worker.claimed >= 200


async def test_a_client_that_sends_without_reading_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate)) as served:
        _, writer = await opened(served.port, GET)
        writer.transport.set_write_buffer_limits(high=0)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 100_000_000:
                writer.write(GET * 2_000)
                sent += len(GET) * 2_000
                await writer.drain()

        flooding = asyncio.create_task(flood())
        await asyncio.wait((flooding,), timeout=0.5)
        assert not flooding.done()
        flooding.cancel()
        assert sent < 30_000_000
        writer.transport.abort()
        gate.may.set()
        await served.until(0)
        assert len(gate.order) < 10, "what it has sent is not served to nobody"


async def test_heads_and_bodies_may_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.lane.connection.BODY_SECONDS", 60.0)
    head = b"POST /function/hello HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    async with lane(monkeypatch, FakeWorker()) as served:
        for pieces in ((head[:50], head[50:], b"body"), (head + b"bo", b"dy"), (head, b"b", b"o", b"d", b"y")):
            got = await talk(served.port, *pieces, pause=0.02)
            assert got.startswith(b"HTTP/1.1 200")
            assert b'"body":"body"' in got
        assert served.worker.claimed == 3
        single = await talk(served.port, *[bytes([byte]) for byte in head + b"body"], pause=0.0)
        assert b'"body":"body"' in single


async def test_a_body_that_does_not_come_is_waited_for_by_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.lane.connection.BODY_SECONDS", 0.05)
    monkeypatch.setattr("gateway.lane.lane.CHECK_SECONDS", 0.02)
    head = b"POST /function/hello HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
    async with lane(monkeypatch, FakeWorker()) as served:
        got = await talk(served.port, head + b"bo", b"dy", pause=1.0)
        assert b'"body":"body"' in got
        assert served.worker.claimed == 0


async def test_bodies_count_on_the_budget_and_where_that_is_used_up_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    monkeypatch.setattr(BODIES, "limit", 1_500)
    post = b"POST /function/hello HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1_000
    async with lane(monkeypatch, FakeWorker(gate), instances=2) as served:
        reader, writer = await opened(served.port, post)
        await served.until(1)
        assert BODIES.held == 1_000
        assert (await talk(served.port, post, seconds=0.2)).startswith(b"HTTP/1.1 503")
        gate.may.set()
        assert (await answer(reader))[0] == 200
        assert BODIES.held == 0
        writer.close()


@pytest.mark.parametrize("interface", list(Interface)[1:])
async def test_a_client_who_leaves_is_nobodys_error_and_its_slot_comes_back(
    monkeypatch: pytest.MonkeyPatch, interface: Interface
) -> None:
    may_end = asyncio.Event()

    async def hangs(revision: Revision, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async def works(revision: Revision, event: bytes) -> InvocationResult:
        await may_end.wait()
        return InvocationResult(event)

    async with lane(monkeypatch, FakeWorker(works, hangs), interface=interface) as served:
        _, writer = await opened(served.port, GET)
        await served.until(1)
        writer.transport.abort()
        if interface is Interface.LAMBDA:
            await asyncio.sleep(0.05)
            assert served.executing == 1, "an event runs to its end, as on Lambda"
            may_end.set()
        await served.until(0)
        assert (served.counted("success"), served.counted("error")) == (1, 0)
        assert sample(served.metrics, "faas_concurrent_executions", function="hello") == 0


async def test_the_end_of_the_clients_side_is_the_end_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate)) as served:
        assert await talk(served.port, GET, end=True) == b""
        gate.may.set()


async def test_who_finds_no_slot_stands_in_line_and_leaves_it_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate)) as served:
        clients = []
        for n in range(5):
            clients.append(await opened(served.port, b"GET /function/hello/%d HTTP/1.1\r\nHost: a\r\n\r\n" % n))
            await eventually(lambda: served.path.invoker.running == len(clients))
        clients[2][1].transport.abort()
        await eventually(lambda: served.path.invoker.running == 4)
        gate.may.set()
        for n in (0, 1, 3, 4):
            status, body = await answer(clients[n][0])
            assert (status, json.loads(body)["rawPath"]) == (200, f"/{n}")
            clients[n][1].close()
        assert gate.order == ["/0", "/1", "/3", "/4"]
        assert served.worker.claimed == 4
        assert served.path.activator.collector.load(KEY, 0.0).in_flight == 0
        assert served.path.activator.breakers.of(revision()).unused
        assert sample(served.metrics, "faas_queue_wait_seconds_count", function="hello") == 4


async def test_who_waits_too_long_hears_429_on_a_connection_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate), queue_timeout=1) as served:
        first, holding = await opened(served.port, GET)
        await served.until(1)
        second, waiting = await opened(served.port, GET)
        status, body = await answer(second)
        assert (status, json.loads(body)["error"]["code"]) == (429, "Throttled")
        throttled = {"function": "hello", "reason": "ConcurrentInvocationLimitExceeded"}
        assert sample(served.metrics, "faas_throttles_total", **throttled) == 1
        gate.may.set()
        assert (await answer(first))[0] == 200
        waiting.write(GET)
        assert (await answer(second))[0] == 200
        holding.close()
        waiting.close()


async def test_a_full_line_and_one_without_patience_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate), queue_timeout=0) as served:
        first, holding = await opened(served.port, GET)
        await served.until(1)
        assert (await talk(served.port, GET, seconds=0.1)).startswith(b"HTTP/1.1 429")
        gate.may.set()
        assert (await answer(first))[0] == 200
        holding.close()


@pytest.mark.parametrize("interface", list(Interface)[1:])
async def test_an_instance_that_must_be_waited_for_is(monkeypatch: pytest.MonkeyPatch, interface: Interface) -> None:
    worker = FakeWorker(echo, ok, start_seconds=0.05)
    async with lane(monkeypatch, worker, instances=0, interface=interface) as served:
        reader, writer = await opened(served.port, GET, GET)
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]
        assert (worker.claimed, len(worker.invocations)) == (1, 1)
        assert worker.scaled[0] == (KEY, 1)
        assert served.counted("success") == 2
        writer.close()


async def test_a_client_who_leaves_a_cold_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker(start_seconds=0.3)
    async with lane(monkeypatch, worker, instances=0) as served:
        _, writer = await opened(served.port, GET)
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await served.until(0)


async def test_after_plain_requests_a_websocket_and_a_large_body_go_the_other_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def size(revision: Revision, request: HttpRequest) -> HttpResponse:
        found = 0
        if request.body is not None:
            assert not isinstance(request.body, bytes)
            async for piece in request.body:
                found += len(piece)
        text = f"{request.upgrade}{found}".encode()
        return HttpResponse(200, (("Content-Length", str(len(text))),), stream(text))

    upgrade = b"GET /function/hello HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    large = b"POST /function/hello HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    async with lane(monkeypatch, FakeWorker(on_request=size), interface=Interface.HTTP) as served:
        for other, told in ((large, b"100000"), (upgrade, b"websocket0")):
            before = served.worker.claimed
            reader, writer = await opened(served.port, GET)
            assert await answer(reader) == (200, b"0")
            writer.write(GET + other)
            assert await answer(reader) == (200, b"0")
            assert await answer(reader) == (200, told)
            assert served.worker.claimed == before + 2
            writer.close()


async def test_a_streamed_answer_comes_piece_by_piece_and_its_failure_cuts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    more = asyncio.Event()
    fails = False

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        if fails:
            raise ValueError
        yield b"second"

    async def streams(revision: Revision, event: bytes) -> StreamedResult:
        return StreamedResult(pieces(), b'{"statusCode": 201, "headers": {"X-A": "b"}}')

    worker = FakeWorker()
    worker.on_stream = streams
    async with lane(monkeypatch, worker) as served:
        for worker.claims in (True, False):  # by a claim, and by a lease
            more.clear()
            fails = False
            reader, writer = await opened(served.port, GET)
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"first\r\n")
                assert head.startswith(b"HTTP/1.1 201")
                assert b"X-A: b\r\n" in head
                more.set()
                assert await reader.readuntil(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"
                fails = True
                writer.write(GET)
                assert b"0\r\n\r\n" not in (await reader.read()).replace(b"\r\n\r\n5\r\nfirst", b"")
            writer.close()
            await served.until(0)


async def test_who_does_not_read_holds_a_streaming_function_back(monkeypatch: pytest.MonkeyPatch) -> None:
    produced = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += 100_000
            yield b"x" * 100_000

    async def streams(revision: Revision, event: bytes) -> StreamedResult:
        return StreamedResult(endless())

    worker = FakeWorker()
    worker.on_stream = streams
    async with lane(monkeypatch, worker) as served:
        _, writer = await opened(served.port, GET)
        assert await at_rest(lambda: produced) < 30_000_000
        writer.transport.abort()
        await served.until(0)


async def test_an_idle_connection_and_a_head_that_does_not_end_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lane(monkeypatch, FakeWorker(), options={"keepalive_timeout": 0.2}) as served:
        for sent in ((), (GET,), (GET[:30],), (GET, GET[:-2])):
            async with asyncio.timeout(15):
                got = await talk(served.port, *sent, seconds=15)
            assert got.count(b"HTTP/1.1 200") == sent.count(GET)


async def test_a_changed_function_is_called_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    async def number(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(str(revision.key.number).encode())

    async with lane(monkeypatch, FakeWorker(number)) as served:
        reader, writer = await opened(served.port, GET)
        assert await answer(reader) == (200, b"1")
        second = revision(number=2, scale={"max": 1})
        put(served.path, revision(), second)
        await served.worker.scale(second, 1)
        writer.write(GET)
        assert await answer(reader) == (200, b"2")
        put(served.path, revision(number=3, public=False))
        writer.write(GET)
        assert (await answer(reader))[0] == 401
        writer.close()
        served.path.router.remove("default", "hello")
        reader, writer = await opened(served.port, GET)
        assert (await answer(reader))[0] == 404
        writer.close()


async def test_what_is_not_plain_any_more_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lane(monkeypatch, FakeWorker()) as served:
        reader, writer = await opened(served.port, GET)
        assert (await answer(reader))[0] == 200
        monkeypatch.setattr(Passage, "plain", lambda self, entry: False)
        served.path.router.changed()
        writer.write(GET)
        assert (await answer(reader))[0] == 200
        assert served.worker.claimed == 1
        writer.close()


async def test_draining_refuses_what_is_new_and_finishes_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gated()
    async with lane(monkeypatch, FakeWorker(gate), instances=2) as served:
        reader, writer = await opened(served.port, GET)
        await served.until(1)
        idle, other = await opened(served.port)
        closing = asyncio.create_task(served.path.invoker.close(5))
        await asyncio.sleep(0)
        other.write(GET)
        assert (await answer(idle))[0] == 503
        assert not closing.done()
        gate.may.set()
        assert (await answer(reader))[0] == 200
        async with asyncio.timeout(15):
            await closing
        writer.close()
        other.close()
