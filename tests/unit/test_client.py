"""The control API's client, against a real HTTP server that answers what the test says."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import Iterator

import pytest

from faas.client import Client
from faas.client_errors import NoAnswer, Refusal, Unreachable
from faas.errors import (
    FaasError,
    Forbidden,
    FunctionError,
    InitFailed,
    NotFound,
    OutOfMemory,
    Throttled,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from tests.support.fake_api import HELLO, REQUEST_ID, TOKEN, FakeApi, Reply, Seen, refusal


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as running:
        yield running


async def test_it_sends_its_token_and_quotes_names(api: FakeApi) -> None:
    api.replies["GET", "/v1/functions/hello.team"] = Reply(HELLO)
    async with Client(api.url + "/", TOKEN) as client:
        assert (await client.function("hello.team"))["revision"] == 7
        with pytest.raises(NotFound):
            await client.function("../tokens")
    assert api.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert api.seen[1].path == "/v1/functions/../tokens"  # one quoted part: it never became two


async def test_a_deploy_sends_spec_image_and_check(api: FakeApi) -> None:
    api.replies["PUT", "/v1/functions/hello"] = Reply({**HELLO, "warnings": ["w"]}, 201)
    async with Client(api.url, TOKEN) as client:
        answer = await client.deploy("hello", {"name": "hello"}, "hello@sha256:x", check=False)
    assert answer["warnings"] == ["w"]
    assert api.seen[0].json() == {"spec": {"name": "hello"}, "image": "hello@sha256:x", "check": False}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NotFound", NotFound),
        (401, "Unauthenticated", Unauthenticated),
        (403, "Forbidden", Forbidden),
        (502, "Runtime.OutOfMemory", OutOfMemory),
        (504, "Sandbox.Timedout", TimedOut),
        (403, "SomethingNewer", Forbidden),
        (418, "SomethingNewer", FaasError),
    ],
)
async def test_an_error_is_raised_as_what_it_was_on_the_server(
    api: FakeApi, status: int, code: str, kind: type[FaasError]
) -> None:
    api.replies["GET", "/v1/functions/hello"] = refusal(status, code, "no such luck", "try again")
    async with Client(api.url, TOKEN) as client:
        with pytest.raises(FaasError) as caught:
            await client.function("hello")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("no such luck", "try again")
    cause = caught.value.__cause__
    assert isinstance(cause, Refusal)
    assert (cause.status, cause.request_id, cause.function) == (status, REQUEST_ID, "hello")


async def test_a_refused_start_brings_the_functions_last_lines(api: FakeApi) -> None:
    reply = refusal(502, "Runtime.InitError", "it ended with 1", "check the handler", log_tail="boom\n")
    api.replies["PUT", "/v1/functions/hello"] = reply
    async with Client(api.url, TOKEN) as client:
        with pytest.raises(InitFailed) as caught:
            await client.deploy("hello", {}, "x@y")
    assert caught.value.log_tail == "boom\n"


async def test_a_refusal_for_want_of_capacity_says_when_to_come_back(api: FakeApi) -> None:
    reply = refusal(429, "Throttled", "busy")
    api.replies["POST", "/v1/functions/hello/invocations"] = Reply(
        reply.body, 429, {"Retry-After": "7", "Reason": "ReservedFunctionConcurrentInvocationLimitExceeded"}
    )
    async with Client(api.url, TOKEN) as client:
        with pytest.raises(Throttled) as caught:
            await client.invoke("hello", b"{}")
    assert (caught.value.retry_after, caught.value.reason[:8]) == (7, "Reserved")


async def test_an_answer_that_is_not_the_apis_is_said_as_such(api: FakeApi) -> None:
    api.replies["GET", "/v1/info"] = Reply(b"<html>", 502)
    api.replies["GET", "/v1/functions"] = Reply(b"<html>")
    async with Client(api.url, TOKEN) as client:
        with pytest.raises(FunctionError, match="answered 502"):
            await client.info()
        with pytest.raises(FaasError, match="answered no JSON"):
            await client.functions()


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with Client(url) as client:
            with pytest.raises(Unreachable, match=f"cannot reach the server at {url}"):
                await client.info()
    assert issubclass(Unreachable, Unavailable)


async def test_a_server_that_does_not_answer_in_time_is_not_waited_for(api: FakeApi) -> None:
    api.replies["GET", "/v1/info"] = Reply({}, delay=5)
    async with Client(api.url, TOKEN, call_seconds=0.1) as client:
        with pytest.raises(NoAnswer, match=r"within 0\.1 s"):
            await client.info()


async def test_an_invocation_returns_the_payload_as_it_is(api: FakeApi) -> None:
    log = base64.b64encode(b"START\nREPORT\n").decode()
    api.replies["POST", "/v1/functions/hello:v3/invocations"] = Reply(b"\x00raw", headers={"X-Faas-Log-Result": log})
    async with Client(api.url, TOKEN) as client:
        answer = await client.invoke("hello", b'{"n": 1}', qualifier="v3", log=True)
    assert (answer.payload, answer.error_type, answer.log_tail) == (b"\x00raw", "", "START\nREPORT\n")
    assert api.seen[0].headers["x-faas-invocation-type"] == "RequestResponse"
    assert api.seen[0].headers["x-faas-log-type"] == "Tail"
    assert api.seen[0].body == b'{"n": 1}'


async def test_a_function_that_raised_is_an_answer_with_its_error_type(api: FakeApi) -> None:
    body = {"errorType": "KeyError", "errorMessage": "lost"}
    api.replies["POST", "/v1/functions/hello/invocations"] = Reply(body, headers={"X-Error-Type": "KeyError"})
    async with Client(api.url, TOKEN) as client:
        answer = await client.invoke("hello", b"{}")
    assert answer.error_type == "KeyError"
    assert json.loads(answer.payload) == body


async def test_an_http_functions_own_404_is_its_answer_and_the_apis_is_an_error(api: FakeApi) -> None:
    api.replies["POST", "/v1/functions/web/invocations"] = Reply({"error": "no page"}, 404)
    async with Client(api.url, TOKEN) as client:
        answer = await client.invoke("web", b"")
        assert (answer.status, answer.error_type) == (404, "HTTP 404")
        with pytest.raises(NotFound):
            await client.invoke("nowhere", b"")


async def test_log_records_come_one_by_one_however_they_are_cut(api: FakeApi) -> None:
    records = [{"time": float(n), "message": "ü" * 70_000, "stream": "stdout"} for n in range(3)]
    body = b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
    api.replies["GET", "/v1/functions/hello/logs"] = Reply(body)
    async with Client(api.url, TOKEN) as client:
        got = [r async for r in client.logs("hello", since=12.5, filter="x", request_id="r", limit=9)]
    assert got == records
    assert api.seen[0].query == {"since": "12.500000", "filter": "x", "request_id": "r", "limit": "9"}


async def test_a_log_of_nobody_is_not_found(api: FakeApi) -> None:
    async with Client(api.url, TOKEN) as client:
        with pytest.raises(NotFound):
            await anext(client.logs("nobody"))


async def test_the_small_operations_reach_their_routes(api: FakeApi) -> None:
    def accepted(seen: Seen) -> Reply:
        return Reply({"instances": 2, "token": "t", "revision": 1, "fires": [{"status": "success"}]})

    routes = [
        ("POST", "/v1/functions/f/rollback"), ("PUT", "/v1/functions/f/aliases/beta"),
        ("DELETE", "/v1/functions/f/aliases/beta"), ("POST", "/v1/functions/f/scale"), ("DELETE", "/v1/functions/f"),
        ("POST", "/v1/dead-letters/d/retry"), ("DELETE", "/v1/dead-letters/d"), ("POST", "/v1/tokens"),
        ("DELETE", "/v1/tokens/ci"), ("PUT", "/v1/runtimes/python"), ("GET", "/v1/functions/f/schedules/s/history"),
    ]  # fmt: skip
    for route in routes:
        api.replies[route] = accepted
    async with Client(api.url, TOKEN) as client:
        await client.rollback("f", 3)
        await client.set_alias("f", "beta", 2)
        await client.delete_alias("f", "beta")
        assert await client.scale("f", 2) == 2
        await client.delete("f")
        await client.retry_dead_letter("d")
        await client.delete_dead_letter("d")
        made = await client.create_token("ci", role="deployer", namespace="team", functions=["f"])
        assert made["token"] == "t"
        await client.revoke_token("ci")
        await client.ensure_runtime("python")
        assert await client.schedule_history("f", "s") == [{"status": "success"}]
    assert [(s.method, s.path) for s in api.seen] == routes
    assert api.seen[0].json() == {"to": 3}
    assert api.seen[7].json() == {"name": "ci", "role": "deployer", "namespace": "team", "functions": ["f"]}


async def test_a_client_that_is_cancelled_leaves_nothing(api: FakeApi) -> None:
    api.replies["GET", "/v1/info"] = Reply({}, delay=5)
    before = asyncio.all_tasks()
    async with Client(api.url, TOKEN) as client:
        task = asyncio.create_task(client.info())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert asyncio.all_tasks() == before
