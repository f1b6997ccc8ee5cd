"""The Runtime API against runtimes that die, lie and shout. An event is never lost to a dead poll."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from faas.errors import BadFunctionResponse, FaasError, InitFailed, ResponseTooLarge, TimedOut
from faas.protocol import Invocation, InvocationResult, Trigger
from tests.support.fake_driver import NEXT, FakeRuntime, eventually
from worker.exchange import Exchange, ExchangeState
from worker.runtime_api import RuntimeApi, error_payload
from worker.runtime_connection import HEAD_BYTES

ARN = "arn:aws:lambda:local:000000000000:function:hello"
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

    def exchange(self, request_id: str = "r1", event: bytes = b"{}", limit: float = 5, **more: str) -> Exchange:
        invocation = Invocation(request_id, Trigger.HTTP, 1, **more)
        exchange = Exchange(invocation, event, limit, lambda e: self.handed.append(request_id), lambda e: None)
        self.api.offer(exchange)
        return exchange


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.api.serve(served.listener)
    yield served
    served.api.close()
    for writer in served.writers:
        writer.close()


async def parked(served: Served, count: int = 1) -> None:
    await eventually(lambda: len(served.api._polls) == count)


async def test_an_event_carries_lambdas_headers_and_its_answer_comes_back(served: Served) -> None:
    runtime = await served.runtime()
    exchange = served.exchange("id-1", b'{"n": 1}', trace_id="Root=1-2\r\nX: y", client_context='{"a":1}')
    status, fields, body = await runtime.request("GET", NEXT)
    assert (status, body) == (200, b'{"n": 1}')
    assert fields["lambda-runtime-aws-request-id"] == "id-1"
    assert fields["lambda-runtime-invoked-function-arn"] == ARN
    assert fields["lambda-runtime-trace-id"] == "root=1-2x: y"  # one line, whatever the caller sent
    assert fields["lambda-runtime-client-context"] == '{"a":1}'
    assert fields["content-type"] == "application/json"
    assert abs(int(fields["lambda-runtime-deadline-ms"]) / 1000 - 30 - asyncio.get_running_loop().time()) > 0
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
    exchange = served.exchange("r1", b"1", limit=0.2)
    runtime = await served.runtime()
    for _ in range(3):
        await runtime.next()
    with pytest.raises(TimedOut, match=r"Task timed out after 0\.20 seconds"):
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
    runtime = await served.runtime()
    assert await runtime.respond("r1", 1) == 400  # nothing is open
    exchange = served.exchange("r1")
    assert await runtime.respond("r1", 1) == 400  # not taken yet
    await runtime.next()
    assert await runtime.respond("other", 1) == 400
    assert await runtime.respond("r1", 1) == 202
    assert await runtime.respond("r1", 2) == 400
    assert (await runtime.request("POST", "/2018-06-01/runtime/invocation/r1/response", b"3"))[2] == (
        b'{"errorType": "InvalidRequestID", "errorMessage": "Invalid request ID"}'
    )
    assert (await exchange.outcome()).payload == b"1"
    late = served.exchange("r2", limit=0.05)
    await runtime.next()
    with pytest.raises(TimedOut):
        await late.outcome()
    assert await runtime.respond("r2", 1) == 400


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
        assert all(len(connection._chunks) == 0 for connection in served.api._connections)


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


async def test_connections_and_polls_are_bounded(served: Served) -> None:
    runtimes = [await served.runtime() for _ in range(100)]
    await asyncio.sleep(0.05)
    assert len(served.api._connections) == 64
    for runtime in runtimes[:20]:
        runtime.writer.write(NEXT_REQUEST)
    await parked(served, 8)
    statuses = [(await runtime.answer())[0] for runtime in runtimes[8:20]]
    assert statuses == [429] * 12


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
