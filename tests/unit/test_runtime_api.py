"""The Runtime API against runtimes that die, lie and shout. An event is never lost to a dead poll."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator

import pytest

from faas.errors import BadFunctionResponse, FaasError, FunctionError, InitFailed, ResponseTooLarge, TimedOut
from faas.leases import Invocation, InvocationResult, StreamedResult, Trigger
from tests.support.fake_driver import NEXT, FakeRuntime, eventually
from worker import runtime_connection
from worker.answer_stream import HIGH_BYTES, PRELUDE_BYTES
from worker.deadlines import Deadlines
from worker.exchange import Exchange, ExchangeState
from worker.runtime_api import CONNECTIONS, ERROR_BYTES, KEPT_BYTES, RuntimeApi, error_payload
from worker.runtime_connection import HEAD_BYTES, READ_BYTES, RuntimeConnection
from worker.runtime_listener import FRUITLESS, PAUSE_SECONDS

ARN = "arn:aws:lambda:local:000000000000:function:hello"
ANSWER = "/2018-06-01/runtime/invocation/{}/response"
UNKNOWN = b"GET / HTTP/1.1\r\n\r\n"
NEXT_REQUEST = f"GET {NEXT} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Served:
    """A RuntimeApi on a port of its own."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self.listener = listener
        self.api = RuntimeApi(ARN, 30)
        self.writers: list[asyncio.StreamWriter] = []
        self.handed: list[str] = []

    async def runtime(self) -> FakeRuntime:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return FakeRuntime(reader, writer)

    def exchange(self, request_id: str = "r1", event: bytes = b"{}", limit: float = 60, **more: str) -> Exchange:
        invocation = Invocation(request_id, Trigger.HTTP, 1, **more)
        exchange = Exchange(
            invocation, event, Deadlines(limit), lambda e: self.handed.append(request_id), lambda e: None
        )
        self.api.offer(exchange)
        return exchange


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    served.api.serve(served.listener)
    yield served
    served.api.close()
    for writer in served.writers:
        writer.close()


async def parked(served: Served, count: int = 1) -> None:
    await eventually(lambda: len(served.api._polls) == count)


async def test_an_event_carries_lambdas_headers_and_its_answer_comes_back(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("id-1", b'{"n": 1}', trace_id="Root=1-2\r\nX: y", client_context='{"a":1}')
    before = time.time()
    status, fields, body = await runtime.request("GET", NEXT)
    assert (status, body) == (200, b'{"n": 1}')
    assert fields["lambda-runtime-aws-request-id"] == "id-1"
    assert fields["lambda-runtime-invoked-function-arn"] == ARN
    assert fields["lambda-runtime-trace-id"] == "root=1-2x: y"  # one line, whatever the caller sent
    assert fields["lambda-runtime-client-context"] == '{"a":1}'
    assert fields["content-type"] == "application/json"
    handed_at = int(fields["lambda-runtime-deadline-ms"]) / 1000 - 30  # 30 s is the function's limit
    assert before - 0.001 <= handed_at <= time.time()
    assert await runtime.respond("id-1", {"ok": True}) == 202
    assert await exchange.outcome() == InvocationResult(b'{"ok": true}', "application/json")


async def test_a_parked_poll_gets_the_event_in_one_piece(served: Served) -> None:
    runtime = await served.runtime()
    runtime.writer.write(NEXT_REQUEST)
    await parked(served)
    served.exchange(event=b'"x"')
    assert (await runtime.reader.read(65_536)).endswith(b'\r\n\r\n"x"')


@pytest.mark.parametrize("death", ["close", "half-close", "reset"])
async def test_an_event_is_never_given_to_a_dead_poll(served: Served, death: str) -> None:
    """Not one step of the loop lies between the end of the poll and the event."""
    for number in range(40):
        dead = socket.create_connection(("127.0.0.1", served.port))
        dead.sendall(NEXT_REQUEST)
        await parked(served)
        if death == "half-close":
            dead.shutdown(socket.SHUT_WR)
        elif death == "reset":
            dead.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            dead.close()
        else:
            dead.close()
        exchange = served.exchange(f"r{number}", str(number).encode())
        assert exchange.state is ExchangeState.OFFERED
        runtime = await served.runtime()
        request_id, event = await runtime.next()
        assert (request_id, event) == (f"r{number}", number)
        assert await runtime.respond(request_id, event) == 202
        assert (await exchange.outcome()).payload == str(number).encode()
        runtime.writer.close()
        dead.close()


async def test_a_process_that_is_replaced_gets_the_open_event_again(served: Served) -> None:
    first = await served.runtime()
    exchange = served.exchange("r1", b"1")
    assert await first.next() == ("r1", 1)
    first.writer.close()
    second = await served.runtime()
    assert await second.next() == ("r1", 1)
    assert await second.respond("r1", "late but here") == 202
    assert json.loads((await exchange.outcome()).payload) == "late but here"
    assert served.handed == ["r1"]  # one invocation: its clock ran on


async def test_a_poll_beside_the_one_at_work_waits_and_inherits_the_event_when_that_one_dies(served: Served) -> None:
    first, second = await served.runtime(), await served.runtime()
    exchange = served.exchange("r1", b"1")
    await first.next()
    second.writer.write(NEXT_REQUEST)
    await parked(served)
    first.writer.close()
    status, _, body = await second.answer()
    assert (status, body) == (200, b"1")
    assert await second.respond("r1", 2) == 202
    assert (await exchange.outcome()).payload == b"2"


async def test_a_connection_per_request_works_as_shell_runtimes_do_it(served: Served) -> None:
    for number in range(3):
        exchange = served.exchange(f"r{number}", b"1")
        taker = await served.runtime()
        await taker.next()
        taker.writer.close()
        await asyncio.sleep(0.01)
        answerer = await served.runtime()
        assert await answerer.respond(f"r{number}", number) == 202
        answerer.writer.close()
        assert (await exchange.outcome()).payload == str(number).encode()


async def test_a_runtime_that_takes_an_event_over_and_over_is_left_to_its_time_limit(served: Served) -> None:
    exchange = served.exchange("r1", b"1", limit=4)
    runtime = await served.runtime()
    for _ in range(3):
        await runtime.next()
    with pytest.raises(TimedOut, match=r"Task timed out after 4\.00 seconds"):
        await exchange.outcome()
    runtime.writer.write(NEXT_REQUEST)
    await parked(served)


async def test_a_stopped_process_keeps_its_event_until_the_deadline(served: Served) -> None:
    runtime = await served.runtime()
    runtime.writer.write(NEXT_REQUEST)
    await parked(served)
    exchange = served.exchange(limit=0.1)
    with pytest.raises(TimedOut):
        await exchange.outcome()
    assert exchange.ended_at - exchange.handed_at >= 0.1


async def test_only_the_open_event_can_be_answered_and_only_once(served: Served) -> None:
    async def refused(request_id: str, value: int) -> bool:
        """A body that nobody wants is not even read: its connection ends with the refusal."""
        stray = await served.runtime()
        status, fields, body = await stray.request("POST", ANSWER.format(request_id), json.dumps(value).encode())
        assert (status, fields["connection"]) == (400, "close")
        assert body == b'{"errorType": "InvalidRequestID", "errorMessage": "Invalid request ID"}'
        return await stray.reader.read() == b""

    runtime = await served.runtime()
    assert await refused("r1", 1)  # nothing is open
    exchange = served.exchange("r1")
    assert await refused("r1", 1)  # not taken yet
    await runtime.next()
    assert await refused("other", 1)
    assert await runtime.respond("r1", 1) == 202
    assert await refused("r1", 2)
    assert (await exchange.outcome()).payload == b"1"
    late = served.exchange("r2", limit=0.05)
    await runtime.next()
    with pytest.raises(TimedOut):
        await late.outcome()
    assert await refused("r2", 1)


async def test_what_is_not_offered_or_unknown_is_said_so(served: Served) -> None:
    runtime = await served.runtime()
    for method, path, status in (
        ("POST", "/2020-01-01/extension/register", 501),
        ("PUT", "/2022-07-01/telemetry", 501),
        ("GET", "/2018-06-01/runtime/restore/next", 501),
        ("GET", "/", 404),
        ("POST", NEXT, 405),
        ("GET", "/2018-06-01/runtime/invocation/r1/response", 404),
        ("POST", "/2018-06-01/runtime/invocation/r1/elsewhere", 404),
    ):
        assert (await runtime.request(method, path))[0] == status, path


@pytest.mark.parametrize("declared", [True, False])
async def test_an_answer_or_error_over_the_limit_is_refused_without_being_kept(served: Served, declared: bool) -> None:
    runtime = await served.runtime()
    for number, verb in enumerate(("response", "error")):
        exchange = served.exchange(f"r{number}")
        await runtime.next()
        head = f"POST /2018-06-01/runtime/invocation/r{number}/{verb} HTTP/1.1\r\nHost: x\r\n"
        size = 50 * 1_048_576
        if declared:
            runtime.writer.write(f"{head}Content-Length: {size}\r\n\r\n".encode())
        else:
            runtime.writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(50):
            piece = b"x" * 1_048_576
            runtime.writer.write(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
            await runtime.writer.drain()
        if not declared:
            runtime.writer.write(b"0\r\n\r\n")
        status, _, body = await runtime.answer()
        assert (status, json.loads(body)["errorType"]) == (413, "RequestEntityTooLarge")
        with pytest.raises(ResponseTooLarge, match=str(size)):
            await exchange.outcome()
        assert served.api._kept == 0


async def test_a_body_that_is_declared_absurdly_large_is_refused_at_once(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    path = "/2018-06-01/runtime/invocation/r1/response"
    runtime.writer.write(f"POST {path} HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n".encode())
    assert (await runtime.answer())[0] == 413
    with pytest.raises(ResponseTooLarge):
        await exchange.outcome()
    assert await runtime.reader.read() == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * (HEAD_BYTES * 6),
    ],
)
async def test_what_is_not_http_is_refused_and_the_api_goes_on(served: Served, garbage: bytes) -> None:
    bad = await served.runtime()
    bad.writer.write(garbage)
    with contextlib.suppress(ConnectionResetError):  # closed while more was on its way
        assert (await bad.reader.read()).split(b" ", 2)[1] in (b"400", b"431")
    assert not served.api._connections
    good = await served.runtime()
    exchange = served.exchange()
    await good.next()
    assert await good.respond("r1", 1) == 202
    assert (await exchange.outcome()).payload == b"1"


async def test_connections_and_polls_are_bounded_and_who_waits_outside_comes_in_later(served: Served) -> None:
    runtimes = [await served.runtime() for _ in range(30)]
    await asyncio.sleep(0.05)
    assert len(served.api._connections) == CONNECTIONS
    for runtime in runtimes:
        runtime.writer.write(NEXT_REQUEST)
    await parked(served, 8)
    statuses = [(await runtime.answer())[0] for runtime in runtimes[8:CONNECTIONS]]
    assert statuses == [429] * 8
    for runtime in runtimes[:CONNECTIONS]:
        runtime.writer.close()
    exchange = served.exchange()
    await eventually(lambda: exchange.state is ExchangeState.HANDED)
    assert len(served.api._connections) <= CONNECTIONS


@pytest.mark.parametrize("first", ["poll", "unknown", "answer and poll"])
async def test_a_second_request_before_the_first_is_answered_ends_the_connection(served: Served, first: str) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    poll = NEXT_REQUEST
    answer = f"POST {ANSWER.format('r1')} HTTP/1.1\r\nContent-Length: 1\r\n\r\n1".encode()
    runtime.writer.write({"poll": poll, "unknown": UNKNOWN, "answer and poll": answer + poll}[first] + poll)
    with contextlib.suppress(ConnectionResetError):
        await runtime.reader.read()
    await eventually(lambda: not served.api._connections)
    if first != "answer and poll":
        exchange.fail(FaasError("over"))
    assert served.exchange("r2").state is ExchangeState.OFFERED


@pytest.mark.parametrize("field", ["", "X-Other: 1\r\n"], ids=["as our clients write it", "as others may"])
async def test_the_poll_for_the_next_event_may_come_with_the_answer(served: Served, field: str) -> None:
    runtime = await served.runtime()
    first = served.exchange("r1")
    await runtime.next()
    answer = f"POST {ANSWER.format('r1')} HTTP/1.1\r\nHost: x\r\n{field}Content-Length: 3\r\n\r\n123".encode()
    runtime.writer.write(answer + NEXT_REQUEST)
    assert (await first.outcome()).payload == b"123"
    await parked(served)
    second = served.exchange("r2", b"2")
    assert (await runtime.answer())[0] == 202
    status, fields, body = await runtime.answer()
    assert (status, fields["lambda-runtime-aws-request-id"], body) == (200, "r2", b"2")
    assert await runtime.respond("r2", 4) == 202
    assert (await second.outcome()).payload == b"4"


@pytest.mark.parametrize("cut", range(1, 200, 13))
async def test_an_answer_in_two_pieces_is_the_same_answer(served: Served, cut: int) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    answer = f"POST {ANSWER.format('r1')} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n123".encode() + NEXT_REQUEST
    runtime.writer.write(answer[:cut])
    await asyncio.sleep(0.005)
    runtime.writer.write(answer[cut:])
    assert (await exchange.outcome()).payload == b"123"
    await parked(served)


async def test_an_answer_to_another_event_is_refused_however_it_is_written(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    runtime.writer.write(f"POST {ANSWER.format('r2')} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n123".encode())
    assert (await runtime.answer())[0] == 400
    assert exchange.state is ExchangeState.HANDED


# Answers that stream

PRELUDE = b'{"statusCode":418,"headers":{"a":"b"}}'
HTTP_SHAPED = "application/vnd.awslambda.http-integration-response"


class Streaming:
    """An open event whose answer a runtime streams."""

    def __init__(self, served: Served, runtime: FakeRuntime) -> None:
        self.exchange = Exchange(
            Invocation("r1", Trigger.HTTP, 1), b"{}", Deadlines(60), lambda e: None, lambda e: None, takes_pieces=True
        )
        served.api.offer(self.exchange)
        self.runtime = runtime

    @classmethod
    async def begun(cls, served: Served, content_type: str = "text/plain") -> Streaming:
        streaming = cls(served, await served.runtime())
        await streaming.runtime.next()
        head = f"POST {ANSWER.format('r1')} HTTP/1.1\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n"
        streaming.write((head + "Lambda-Runtime-Function-Response-Mode: streaming\r\n\r\n").encode())
        return streaming

    def write(self, data: bytes) -> None:
        self.runtime.writer.write(data)

    def piece(self, data: bytes) -> None:
        self.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, trailers: str = "") -> None:
        self.write(f"0\r\n{trailers}\r\n".encode())

    async def answer(self) -> StreamedResult:
        result = await self.exchange.begun()
        assert isinstance(result, StreamedResult)
        return result


async def test_a_streamed_answer_is_there_piece_by_piece_before_it_ends(served: Served) -> None:
    streaming = await Streaming.begun(served)
    result = await streaming.answer()
    assert (result.prelude, result.content_type) == (None, "text/plain")
    pieces = aiter(result.body)
    for piece in (b"one", b"two"):
        streaming.piece(piece)
        assert await anext(pieces) == piece
    assert streaming.exchange.state is ExchangeState.HANDED
    streaming.end()
    assert (await streaming.runtime.answer())[0] == 202
    assert [piece async for piece in result.body] == []
    assert streaming.exchange.state is ExchangeState.ENDED


async def test_a_prelude_is_what_comes_before_eight_zeros_however_it_is_cut(served: Served) -> None:
    streaming = await Streaming.begun(served, HTTP_SHAPED)
    for byte in PRELUDE + bytes(8) + b"body":
        streaming.piece(bytes([byte]))
    streaming.end()
    result = await streaming.answer()
    assert (result.prelude, result.content_type) == (PRELUDE, "application/octet-stream")
    assert b"".join([piece async for piece in result.body]) == b"body"


async def test_an_error_in_the_trailers_ends_the_stream(served: Served) -> None:
    streaming = await Streaming.begun(served)
    result = await streaming.answer()
    streaming.piece(b"so far")
    body = base64.b64encode(b'{"errorMessage": "no more", "errorType": "Broken"}').decode()
    streaming.end(f"Lambda-Runtime-Function-Error-Type: Broken\r\nLambda-Runtime-Function-Error-Body: {body}\r\n")
    assert await anext(aiter(result.body)) == b"so far"
    with pytest.raises(FunctionError, match="no more") as failed:
        await anext(aiter(result.body))
    assert failed.value.error_type == "Broken"
    assert streaming.exchange.result is not None
    assert streaming.exchange.result.error_type == "Broken"


@pytest.mark.parametrize("content_type", ["text/plain", HTTP_SHAPED])
async def test_a_stream_that_breaks_off_is_a_truncated_response(served: Served, content_type: str) -> None:
    streaming = await Streaming.begun(served, content_type)
    streaming.piece(b"half")
    await eventually(lambda: streaming.exchange.stream is not None)
    streaming.runtime.writer.close()
    with pytest.raises(BadFunctionResponse) as failed:
        async for _ in (await streaming.answer()).body:
            pass
    assert failed.value.error_type == "Runtime.TruncatedResponse"


async def test_a_prelude_without_an_end_is_no_response(served: Served) -> None:
    streaming = await Streaming.begun(served, HTTP_SHAPED)
    for _ in range(3):
        streaming.piece(b"x" * (PRELUDE_BYTES // 2))
    with pytest.raises(BadFunctionResponse, match="prelude"):
        await streaming.answer()


async def test_who_takes_no_pieces_stops_the_function_and_who_leaves_lets_it_go_on(served: Served) -> None:
    streaming = await Streaming.begun(served)
    result = await streaming.answer()
    size = 30 * 1_048_576

    async def shout() -> None:
        for _ in range(size // 65_536):
            streaming.piece(bytes(65_536))
            await streaming.runtime.writer.drain()
        streaming.end()

    shouting = asyncio.get_running_loop().create_task(shout())
    await asyncio.sleep(0.1)
    assert not shouting.done()
    assert streaming.exchange.stream is not None
    assert streaming.exchange.stream._buffered <= HIGH_BYTES + READ_BYTES
    streaming.exchange.leave(lambda exchange: None)
    await shouting
    assert (await streaming.runtime.answer())[0] == 202
    assert [piece async for piece in result.body] == []
    assert streaming.exchange.error is None


async def test_a_streamed_answer_may_be_larger_than_one_that_is_held_but_not_endless(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_connection, "STREAMED_BYTES", 8 * 1_048_576)
    streaming = await Streaming.begun(served)
    result = await streaming.answer()

    async def shout() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                streaming.piece(bytes(65_536))
                await streaming.runtime.writer.drain()

    shouting = asyncio.get_running_loop().create_task(shout())
    received = 0

    async def take() -> None:
        nonlocal received
        async for piece in result.body:
            received += len(piece)

    with pytest.raises(ResponseTooLarge):
        await take()
    await shouting
    assert received > 7 * 1_048_576


async def test_who_takes_an_answer_whole_gets_a_streamed_one_whole(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    body = PRELUDE + bytes(8) + b"body"
    fields = {"Content-Type": HTTP_SHAPED, "Lambda-Runtime-Function-Response-Mode": "streaming"}
    assert (await runtime.request("POST", ANSWER.format("r1"), body, fields))[0] == 202
    assert await exchange.outcome() == InvocationResult(body, HTTP_SHAPED)


async def test_connections_that_come_for_nothing_are_let_in_slowly(served: Served) -> None:
    accepted = 0
    connected = served.api.connected

    def counted(connection: RuntimeConnection) -> bool:
        nonlocal accepted
        accepted += 1
        return connected(connection)

    served.api.connected = counted  # type: ignore[method-assign]
    began = time.monotonic()
    for _ in range(3 * FRUITLESS):
        stray = await served.runtime()
        stray.writer.close()
    await eventually(lambda: accepted == 3 * FRUITLESS)
    assert time.monotonic() - began >= 2 * PAUSE_SECONDS
    for number in range(FRUITLESS + CONNECTIONS):  # who comes for something is not held up, a connection each or not
        exchange = served.exchange(f"r{number}", b"1")
        taker = await served.runtime()
        await taker.next()
        taker.writer.close()
        assert await (await served.runtime()).respond(f"r{number}", number) == 202
        await exchange.outcome()
        served.writers.pop().close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", NEXT, 405),
        ("PUT", ANSWER.format("r1"), 404),
        ("POST", ANSWER.format("r2"), 400),
        ("POST", "/2018-06-01/runtime/invocation/r1/elsewhere", 404),
        ("POST", "/2018-06-01/runtime/init/error", 403),
        ("POST", "/2020-01-01/extension/register", 501),
        ("POST", "/", 404),
    ],
)
@pytest.mark.parametrize("framing", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
async def test_a_body_that_nobody_wants_is_refused_before_it_is_read(
    served: Served, method: str, path: str, status: int, framing: str
) -> None:
    runtime, stray = await served.runtime(), await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    stray.writer.write(f"{method} {path} HTTP/1.1\r\n{framing}\r\n\r\n".encode())
    assert (await stray.answer())[0] == status
    assert await stray.reader.read() == b""
    assert served.api._kept == 0
    assert await runtime.respond("r1", 1) == 202
    assert (await exchange.outcome()).payload == b"1"


async def test_bodies_on_their_way_have_one_budget_however_they_are_cut(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    head = f"POST {ANSWER.format('r1')} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    strays = [await served.runtime() for _ in range(3)]
    for stray in strays:
        stray.writer.write(head + b"%x\r\n%b\r\n" % (5_000_000, b"x" * 5_000_000))
    statuses = asyncio.gather(*(stray.answer() for stray in strays), return_exceptions=True)
    await eventually(lambda: len(served.api._connections) == 3 and served.api._kept == 2 * 5_000_000)
    assert served.api._kept <= KEPT_BYTES < 3 * 5_000_000
    for stray in strays:
        stray.writer.transport.abort()
    await statuses
    await eventually(lambda: served.api._kept == 0)
    runtime.writer.write(head + b"1\r\nx\r\n" * 100_000)
    await eventually(lambda: served.api._kept == 100_000)
    [connection] = served.api._connections
    assert sys.getsizeof(connection._body) < 150_000
    runtime.writer.write(b"0\r\n\r\n")
    assert (await runtime.answer())[0] == 202
    assert (await exchange.outcome()).payload == b"x" * 100_000
    assert served.api._kept == 0


@pytest.mark.parametrize("what", ["trailers", "chunk extensions", "header fields", "empty lines"])
async def test_framing_without_an_end_is_refused(served: Served, what: str) -> None:
    runtime = await served.runtime()
    served.exchange("r1")
    await runtime.next()
    head = f"POST {ANSWER.format('r1')} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n".encode()
    begin, more = {
        "trailers": (head + b"\r\n0\r\nX: ", b"x" * 65_536),
        "chunk extensions": (head + b"\r\n1;", b"x" * 65_536),
        "header fields": (head, b"a:\r\n" * 16_384),
        "empty lines": (b"", b"\r\n" * 32_768),
    }[what]
    runtime.writer.write(begin)
    for _ in range(16):
        with contextlib.suppress(ConnectionError):
            runtime.writer.write(more)
            await runtime.writer.drain()
            await asyncio.sleep(0.002)
    await eventually(lambda: not served.api._connections)


async def test_events_that_are_taken_and_not_read_do_not_pile_up(served: Served) -> None:
    """Each is taken by a connection of its own, which reads no byte of it; the answer comes another way."""
    event, answerer = b'"' + b"x" * 6_000_000 + b'"', await served.runtime()
    for number in range(10):
        taker = await served.runtime()
        taker.writer.transport.pause_reading()  # type: ignore[attr-defined]
        exchange = served.exchange(f"r{number}", event)
        taker.writer.write(NEXT_REQUEST)
        await eventually(lambda at=exchange: at.state is ExchangeState.HANDED)  # type: ignore[misc]
        assert await answerer.respond(f"r{number}", number) == 202
        await exchange.outcome()
    unread = sum(c._transport.get_write_buffer_size() for c in served.api._connections)  # type: ignore[misc, union-attr]
    assert unread <= 7_000_000


async def test_who_does_not_read_its_event_is_not_read_either(served: Served) -> None:
    runtime = await served.runtime()
    runtime.writer.transport.pause_reading()  # type: ignore[attr-defined]
    exchange = served.exchange("r1", b'"' + b"x" * 6_000_000 + b'"')
    runtime.writer.write(NEXT_REQUEST)
    await eventually(lambda: exchange.state is ExchangeState.HANDED)
    for _ in range(1000):
        runtime.writer.write(b"POST / HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0.05)
    [connection] = served.api._connections
    assert connection.is_behind
    assert connection.method != b"POST"  # what came after it was not looked at
    assert connection._transport is not None
    assert connection._transport.get_write_buffer_size() < 6_100_000
    runtime.writer.transport.abort()
    await eventually(lambda: not served.api._connections)


async def test_requests_pipelined_behind_a_poll_end_the_connection(served: Served) -> None:
    runtime = await served.runtime()
    runtime.writer.write(NEXT_REQUEST * 3)
    assert await runtime.reader.read() == b""
    exchange = served.exchange()
    assert exchange.state is ExchangeState.OFFERED


async def test_an_init_error_is_the_functions_own_and_only_before_the_first_poll(served: Served) -> None:
    runtime = await served.runtime()
    body = json.dumps({"errorType": "Runtime.NoSuchModule", "errorMessage": "no module x"}).encode()
    assert (await runtime.request("POST", "/2018-06-01/runtime/init/error", body))[0] == 202
    with pytest.raises(InitFailed, match="no module x") as failed:
        await served.api.first_poll
    assert failed.value.error_type == "Runtime.NoSuchModule"
    assert (await runtime.request("POST", "/2018-06-01/runtime/init/error", body))[0] == 403


@pytest.mark.parametrize("how", ["error", "response with an error type", "init error"])
async def test_a_huge_error_is_cut_and_said_so_without_being_parsed(served: Served, how: str) -> None:
    runtime = await served.runtime()
    body = json.dumps({"errorMessage": "deep " + "[" * 3_000_000}).encode()
    header = {"Lambda-Runtime-Function-Error-Type": "TooMuch"}
    cut = f"… (cut: the error had {len(body)} bytes, {ERROR_BYTES} are read)"
    if how == "init error":
        assert (await runtime.request("POST", "/2018-06-01/runtime/init/error", body, header))[0] == 202
        with pytest.raises(InitFailed, match=r"\{\"errorMessage\": \"deep \[") as failed:
            await served.api.first_poll
        assert failed.value.error_type == "TooMuch"
        return
    exchange = served.exchange("r1")
    await runtime.next()
    path = ANSWER.format("r1") if how != "error" else ANSWER.format("r1").replace("response", "error")
    assert (await runtime.request("POST", path, body, header))[0] == 202
    answer = await exchange.outcome()
    assert answer.error_type == "TooMuch"
    assert len(answer.payload) < 10_000
    assert json.loads(answer.payload)["errorMessage"].endswith(cut)


async def test_a_streamed_answer_is_taken_whole_its_error_in_the_trailers(served: Served) -> None:
    runtime = await served.runtime()
    streaming = "Lambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n"
    head = "POST /2018-06-01/runtime/invocation/{}/response HTTP/1.1\r\nContent-Type: text/plain\r\n" + streaming
    exchange = served.exchange("r1")
    await runtime.next()
    runtime.writer.write(head.format("r1").encode() + b"\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (await runtime.answer())[0] == 202
    assert await exchange.outcome() == InvocationResult(b"abcde", "text/plain")
    exchange = served.exchange("r2")
    await runtime.next()
    trailer = b"Lambda-Runtime-Function-Error-Type: Oops\r\n"
    runtime.writer.write(head.format("r2").encode() + b"\r\n3\r\nabc\r\n0\r\n" + trailer + b"\r\n")
    assert (await runtime.answer())[0] == 202
    assert (await exchange.outcome()).error_type == "Oops"
    exchange = served.exchange("r3")
    await runtime.next()
    runtime.writer.write(head.format("r3").encode() + b"\r\n3\r\nabc\r\n")
    runtime.writer.close()
    with pytest.raises(BadFunctionResponse) as broken:
        await exchange.outcome()
    assert broken.value.error_type == "Runtime.TruncatedResponse"


async def test_a_large_upload_is_told_to_continue(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("r1")
    await runtime.next()
    path = "/2018-06-01/runtime/invocation/r1/response"
    runtime.writer.write(f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
    assert await runtime.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    runtime.writer.write(b"42")
    assert (await runtime.answer())[0] == 202
    assert (await exchange.outcome()).payload == b"42"


async def test_answers_arrive_byte_for_byte(served: Served) -> None:
    runtime = await served.runtime()
    for number, body in enumerate((b"", b"NaN", b"\xff\xfe\x00", b'"\xe2\x82', b"x" * 200_000)):
        exchange = served.exchange(f"r{number}")
        await runtime.next()
        assert await runtime.respond(f"r{number}", body) == 202
        assert (await exchange.outcome()).payload == body


async def test_a_cancelled_wait_leaves_the_exchange_open(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange()
    waiting = asyncio.create_task(exchange.outcome())
    await runtime.next()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert exchange.state is ExchangeState.HANDED
    assert await runtime.respond("r1", 1) == 202
    assert (await exchange.outcome()).payload == b"1"


async def test_an_exchange_ends_once(served: Served) -> None:
    exchange = served.exchange()
    exchange.fail(FaasError("first"))
    exchange.answer(InvocationResult(b"second"))
    with pytest.raises(FaasError, match="first"):
        await exchange.outcome()


@pytest.mark.parametrize(
    ("body", "header", "error_type", "message"),
    [
        (b'{"errorType": "ValueError", "errorMessage": "x"}', "", "ValueError", "x"),
        (b'{"errorMessage": "x"}', "Runtime.Unknown", "Runtime.Unknown", "x"),
        (b"not json \xff", "", "Unhandled", "not json �"),
        (b"[1]", "", "Unhandled", "[1]"),
        (b'{"errorType": 5}', "", "Unhandled", ""),
        (b'{"errorType": "A\\r\\nX-Evil: 1", "errorMessage": "x"}', "", "AX-Evil: 1", "x"),
    ],
)
def test_an_error_is_lambdas_object_whatever_was_posted(
    body: bytes, header: str, error_type: str, message: str
) -> None:
    payload, found = error_payload(body, header)
    assert found == error_type
    assert json.loads(payload)["errorMessage"] == message
