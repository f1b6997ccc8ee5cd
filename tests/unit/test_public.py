"""`/function/…` on real sockets: routing, who may call, limits, and bytes that try to be two requests."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
from typing import Any, ClassVar

import pytest
from aiohttp import ClientSession, web
from multidict import CIMultiDictProxy

from faas.auth import Principal, Role
from faas.errors import InitFailed, OutOfMemory, TimedOut
from faas.leases import InvocationResult
from faas.protocol import (
    Revision,
)
from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from gateway.data_path import DataPath
from gateway.invoke import SYNC_PAYLOAD_BYTES
from tests.support.both_ways import both_ways as both_ways
from tests.support.data_path import TOKEN, application, data_path, put, revision, sample
from tests.support.fake_worker import FakeWorker
from tests.support.raw_http import serving, talk
from tests.support.smuggling import FORMS, GET, POST

SECOND = b"GET /function/hello/second HTTP/1.1\r\nHost: b\r\n\r\n"
UPGRADE = b"Host: a\r\nConnection: Upgrade\r\nUpgrade: "


def hello(worker: FakeWorker | None = None, **spec: Any) -> DataPath:
    path, _ = data_path(worker or FakeWorker())
    put(path, revision(**spec))
    return path


async def get(port: int, target: str, method: str = "GET", **options: Any) -> tuple[int, CIMultiDictProxy[str], bytes]:
    url = f"http://127.0.0.1:{port}{target}"
    async with ClientSession(auto_decompress=False) as session, session.request(method, url, **options) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_a_lambda_function_sees_its_request_and_its_answer_is_the_clients() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        status, headers, body = await get(port, "/function/hello/a%2Fb/c?x=1", "PUT", data="hi", headers={"X-A": "b"})
        seen = json.loads(body)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert (seen["rawPath"], seen["rawQueryString"], seen["body"]) == ("/a%2Fb/c", "x=1", "hi")
        assert seen["requestContext"]["http"]["method"] == "PUT"
        assert seen["headers"]["x-a"] == "b"
        assert seen["requestContext"]["requestId"] == headers["X-Request-Id"] == seen["headers"]["x-request-id"]
        assert json.loads((await get(port, "/function/hello"))[2])["rawPath"] == "/"
        assert json.loads((await get(port, "/function/hello%3Av1/"))[2])["rawPath"] == "/"


async def test_what_a_client_says_of_proxies_before_it_is_not_believed() -> None:
    claimed = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "Forwarded": "for=x", "X-Real-IP": "6.6.6.6"}
    claimed |= {"X-Forwarded-Host": "bank", "X-Request-Id": "mine", "Connection": "X-Hop", "X-Hop": "1"}
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        seen = json.loads((await get(port, "/function/hello", headers=claimed))[2])["headers"]
    assert "6.6.6.6" not in str(seen)
    assert {"x-real-ip", "x-hop", "connection"}.isdisjoint(seen)
    assert seen["forwarded"] == f'for=127.0.0.1;host="127.0.0.1:{port}";proto=http'
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-host"] == f"127.0.0.1:{port}"
    assert seen["x-request-id"] != "mine"


async def test_a_function_answers_by_its_host_with_every_path() -> None:
    app = application(hello(), domain="example.org")
    async with serving(app, **RUNNER_OPTIONS) as port:
        for host in ("hello.example.org", f"HELLO.example.org:{port}"):
            seen = json.loads((await get(port, "/function/hello/x", headers={"Host": host}))[2])
            assert seen["rawPath"] == "/function/hello/x"
        assert (await get(port, "/x", headers={"Host": "example.org"}))[0] == 404
        assert (await get(port, "/x", headers={"Host": "hello.example.org.evil"}))[0] == 404
        assert (await get(port, "/x", headers={"Host": "other.example.org"}))[0] == 404
        assert (await get(port, "/function/hello"))[0] == 200


@pytest.mark.parametrize("target", ["/function/helo", "/function/hello:v9", "/function/", "/function", "/", "/v1/info"])
async def test_a_public_404_tells_no_names(target: str) -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        status, headers, body = await get(port, target)
    assert status == 404
    assert b"hello" not in body
    assert json.loads(body)["error"]["request_id"] == headers["X-Request-Id"]


async def test_the_apis_404_helps_with_close_names() -> None:
    async with serving(application(hello(), api=True), **RUNNER_OPTIONS) as port:
        _, _, body = await get(port, "/function/helo", headers={"Authorization": f"Bearer {TOKEN}"})
    assert json.loads(body)["error"]["hint"] == "did you mean hello?"


class Tokens:
    """One principal for each token."""

    PRINCIPALS: ClassVar = {
        "admin": Principal("admin", Role.ADMIN),
        "caller": Principal("caller", Role.CALLER),
        "hello-only": Principal("hello-only", Role.CALLER, "default", ("hello",)),
        "other-only": Principal("other-only", Role.CALLER, "default", ("other",)),
        "team": Principal("team", Role.DEPLOYER, "team"),
        "scraper": Principal("scraper", Role.SCRAPER),
        "viewer": Principal("viewer", Role.VIEWER),
    }

    async def authenticate(self, token: str, user: str | None = None) -> Principal | None:
        return self.PRINCIPALS.get(token)

    def takes_password(self, user: str | None) -> bool:
        return False


@pytest.mark.parametrize("api", [False, True])
@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("unknown", 401),
        ("scraper", 403),
        ("viewer", 403),
        ("other-only", 403),
        ("team", 403),
        ("hello-only", 200),
        ("caller", 200),
        ("admin", 200),
    ],
)
async def test_a_private_function_is_for_those_who_may_invoke_it(api: bool, token: str, status: int) -> None:
    app = application(hello(public=False), api=api, authenticator=Tokens())
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    basic = {"Authorization": "Basic " + base64.b64encode(f"{token}:{token}".encode()).decode()} if token else {}
    async with serving(app, **RUNNER_OPTIONS) as port:
        for headers in (bearer, basic):
            got, _, body = await get(port, "/function/hello", headers=headers)
            assert got == status
            if status == 200:
                seen = json.loads(body)
                assert "authorization" not in seen["headers"], "the caller's token is not for the function"
                assert seen["requestContext"]["accountId"] == token


LOCKED = {(429, "1"), (429, "2"), (429, "4")}


@pytest.mark.parametrize("api", [False, True])
async def test_failed_logins_are_slowed_down_and_neither_a_right_token_nor_a_public_function_is(api: bool) -> None:
    async def called(app: web.Application, token: str) -> tuple[int, str | None]:
        async with serving(app, **RUNNER_OPTIONS) as port:
            for _ in range(5):
                assert (await get(port, "/function/hello", headers={"Authorization": "Bearer wrong"}))[0] == failed
            for _ in range(4):  # where the machine stood still for as long as the lock lasts: the next one is longer
                status, headers, _ = await get(port, "/function/hello", headers={"Authorization": f"Bearer {token}"})
                if status != 401:
                    break
            return status, headers.get("Retry-After")

    failed = 401
    assert await called(application(hello(public=False), api=api, authenticator=Tokens()), "wrong") in LOCKED
    assert await called(application(hello(public=False), api=api, authenticator=Tokens()), "caller") == (200, None)
    if not api:  # there the header is the function's own
        failed = 200
        assert await called(application(hello(), authenticator=Tokens()), "wrong") == (200, None)


async def test_on_the_api_listener_public_opens_nothing() -> None:
    async with serving(application(hello(), api=True), **RUNNER_OPTIONS) as port:
        assert (await get(port, "/function/hello"))[0] == 401
        assert (await get(port, "/function/hello", headers={"Authorization": f"Bearer {TOKEN}"}))[0] == 200


async def test_a_public_function_keeps_its_own_credentials() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        seen = json.loads((await get(port, "/function/hello", headers={"Authorization": "Bearer its-own"}))[2])
    assert seen["headers"]["authorization"] == "Bearer its-own"
    assert seen["requestContext"]["accountId"] == "anonymous"


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (TimedOut("RequestId: r Error: Task timed out after 3.00 seconds"), 504, "Sandbox.Timedout"),
        (OutOfMemory("killed: 128 MB"), 502, "Runtime.OutOfMemory"),
        (InitFailed("first line\nTraceback (most recent call last)\n  File", hint="see"), 502, "Runtime.InitError"),
    ],
)
async def test_a_functions_failure_is_named_and_its_stack_stays_inside(
    error: Exception, status: int, error_type: str
) -> None:
    async def fails(revision: Revision, event: bytes) -> InvocationResult:
        raise error

    async with serving(application(hello(FakeWorker(fails))), **RUNNER_OPTIONS) as port:
        got, headers, body = await get(port, "/function/hello")
    assert (got, headers["X-Error-Type"]) == (status, error_type)
    assert b"Traceback" not in body


@pytest.mark.parametrize(
    ("reported", "shown"),
    [("ValueError", "ValueError"), ("Evil\r\nSet-Cookie: a", "Function.Error"), ("", "Function.Error")],
)
async def test_an_error_that_the_function_reports_is_a_502_with_its_name(reported: str, shown: str) -> None:
    async def reports(revision: Revision, event: bytes) -> InvocationResult:
        payload = {"errorType": reported, "errorMessage": "bad\nTraceback", "stackTrace": ["File secret"]}
        return InvocationResult(json.dumps(payload).encode(), error_type=reported)

    async with serving(application(hello(FakeWorker(reports))), **RUNNER_OPTIONS) as port:
        status, headers, body = await get(port, "/function/hello")
    assert (status, headers["X-Error-Type"], "Set-Cookie" in headers) == (502, shown, False)
    assert json.loads(body)["error"]["message"] == "bad"
    assert b"secret" not in body


async def test_throttled_and_draining_say_when_to_come_again() -> None:
    async def slow(revision: Revision, event: bytes) -> InvocationResult:
        await asyncio.sleep(0.3)
        return InvocationResult(event)

    path = hello(FakeWorker(slow), scale={"max": 1}, queue_timeout=0)
    async with serving(application(path), **RUNNER_OPTIONS) as port:
        answers = await asyncio.gather(*(get(port, "/function/hello") for _ in range(2)))
        refused = next(headers for status, headers, _ in answers if status == 429)
        assert int(refused["Retry-After"]) >= 1
        assert refused["Reason"] == "ConcurrentInvocationLimitExceeded"
        path.invoker.drain()
        status, headers, _ = await get(port, "/function/hello")
        assert (status, int(headers["Retry-After"]) >= 1) == (503, True)


async def test_the_body_limit_is_exact_and_refused_before_a_byte_is_read() -> None:
    async def counts(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(str(len(json.loads(event)["body"])).encode())

    async with serving(application(hello(FakeWorker(counts))), **RUNNER_OPTIONS) as port:
        fits = b"a" * SYNC_PAYLOAD_BYTES
        _, _, size = await get(port, "/function/hello", "POST", data=io.BytesIO(fits))
        assert int(size) == len(base64.b64encode(fits))
        head = POST + b"Content-Length: %d\r\n\r\n" % (SYNC_PAYLOAD_BYTES + 1)
        assert (await talk(port, head, seconds=0.3)).startswith(b"HTTP/1.1 413")
        asked = await talk(port, head[:-2] + b"Expect: 100-continue\r\n\r\n", seconds=0.3)
        assert asked.startswith(b"HTTP/1.1 413"), "no 100 before a 413"
        chunk = b"%x\r\n%s\r\n" % (SYNC_PAYLOAD_BYTES + 1, fits + b"b")
        chunked = await talk(port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk, seconds=0.5)
        assert chunked.startswith(b"HTTP/1.1 413")


async def test_100_continue_is_said_when_the_body_is_wanted() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        expecting = POST + b"Content-Length: 2\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
        answer = await talk(port, expecting, b"ok", pause=0.05)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        other = await talk(port, POST + b"Content-Length: 2\r\nExpect: cake\r\n\r\nok", seconds=0.3)
        assert other.startswith(b"HTTP/1.1 417")
        unknown = b"POST /function/none HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        assert (await talk(port, unknown, seconds=0.3)).startswith(b"HTTP/1.1 404")


async def test_a_compressed_body_is_passed_on_as_it_came() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        headers = {"Content-Encoding": "gzip", "Content-Type": "text/plain"}
        seen = json.loads((await get(port, "/function/hello", "POST", data=b"\x1f\x8bnot", headers=headers))[2])
    assert base64.b64decode(seen["body"]) == b"\x1f\x8bnot"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "PATCH", "PROPFIND"])
async def test_every_method_reaches_the_function(method: str) -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        request = f"{method} /function/hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        answer = await talk(port, request)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert bool(body) is (method != "HEAD")
    if method != "HEAD":
        assert json.loads(body)["requestContext"]["http"]["method"] == method


async def test_unknown_names_leave_no_metrics_behind() -> None:
    path, metrics = data_path(FakeWorker())
    put(path, revision())
    async with serving(application(path), **RUNNER_OPTIONS) as port:
        for n in range(50):
            await get(port, f"/function/unknown-{n}")
            await get(port, f"/function/hello:none-{n}")
    text = metrics.render()
    assert b"unknown-" not in text
    assert b"none-" not in text
    assert sample(metrics, "faas_invocations_total") == 0


async def test_an_unknown_interface_is_found_out_at_the_first_request() -> None:
    worker = FakeWorker()
    worker.found = Interface.HTTP
    async with serving(application(hello(worker, interface=Interface.AUTO)), **RUNNER_OPTIONS) as port:
        assert (await get(port, "/function/hello/x"))[2] == b"/x"
        assert (await get(port, "/function/hello/y"))[2] == b"/y"
    assert len(worker.checked) == 1


@pytest.fixture
def quiet() -> Any:
    """aiohttp's own traceback per bad request, which `faas.log` silences in the product."""
    logger = logging.getLogger("aiohttp.server")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def test_what_could_be_read_as_two_requests_gets_one_400_and_a_closed_connection(quiet: None) -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        for name, form in FORMS.items():
            began = asyncio.get_running_loop().time()
            answer = await talk(port, form + SECOND, seconds=10)
            assert answer.count(b"HTTP/1.1 ") + answer.count(b"HTTP/1.0 ") == 1, name
            assert answer[9:12] == b"400", name
            assert asyncio.get_running_loop().time() - began < 9, f"{name}: the connection stayed open"
        plain = await talk(port, GET + b"Host: a\r\n\r\n" + SECOND, seconds=0.3)
        assert plain.count(b"HTTP/1.1 200") == 2, "two good requests are two"


@pytest.mark.parametrize("protocol", [b"websocket", b"tcp", b"h2c"])
async def test_after_an_upgrade_that_was_not_made_the_connection_ends(protocol: bytes) -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        answer = await talk(port, GET + UPGRADE + protocol + b"\r\n\r\n" + SECOND, seconds=3)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_head_that_dribbles_is_cut(quiet: None) -> None:
    async with serving(application(hello()), **{**RUNNER_OPTIONS, "keepalive_timeout": 0.3}) as port:
        began = asyncio.get_running_loop().time()
        assert await talk(port, *[b"GET /function"], *[b"a"] * 20, pause=0.05, seconds=3) == b""
        assert asyncio.get_running_loop().time() - began < 10
    assert RUNNER_OPTIONS["keepalive_timeout"] == 30


async def test_a_body_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faas.web.PROGRESS_SECONDS", 0.1)
    async with serving(application(hello()), lingering_time=0.1, **RUNNER_OPTIONS) as port:
        answer = await talk(port, POST + b"Content-Length: 5\r\n\r\nhe", seconds=3)
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("api", [False, True])
@pytest.mark.parametrize(
    "value", [b"Bearer \xff\xfe", b"Bearer \xc3\xa9", b"Basic \xff", b"Basic /w==", b"Basic w6k6w6k="]
)
async def test_credentials_that_are_not_ascii_are_nobodys(
    api: bool, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    app = application(hello(public=False), api=api)
    async with serving(app, **RUNNER_OPTIONS) as port:
        answer = await talk(port, GET + b"Host: a\r\nAuthorization: " + value + b"\r\n\r\n", seconds=0.3)
    assert answer.startswith(b"HTTP/1.1 401")
    assert [one for one in caplog.records if one.name.startswith(("faas", "aiohttp"))] == []


async def test_pipelined_requests_are_answered_in_order_and_bounded() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        asked = b"".join(b"GET /function/hello/%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(200))
        answer = await talk(port, asked, seconds=0.5)
    positions = [answer.index(b'"rawPath":"/%d"' % n) for n in range(200)]
    assert positions == sorted(positions)
