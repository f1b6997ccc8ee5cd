"""CORS: what the rule takes, which pages are let in, and that nothing a client says comes back to it unchecked."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from faas import spec
from faas.errors import FaasError, OutOfMemory, SpecError, Throttled
from faas.leases import HttpRequest, HttpResponse, InvocationResult
from faas.protocol import Revision
from faas.rules.cors import Cors
from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from tests.support.data_path import application, data_path, put, revision
from tests.support.fake_worker import FakeWorker, stream
from tests.support.raw_http import serving, talk

PAGE = "https://www.example.com"
CREDENTIALS = "Access-Control-Allow-Credentials"
ORIGIN = "Access-Control-Allow-Origin"


def rule(**keys: Any) -> Cors:
    found = spec.parse({"name": "x", "cors": {"origins": [PAGE], **keys}})
    assert spec.parse(json.loads(json.dumps(found.to_dict()))) == found
    assert found.rules.cors is not None
    return found.rules.cors


def test_the_rule_has_its_defaults_and_its_origins_in_the_form_that_browsers_send() -> None:
    found = rule(origins=["HTTPS://WWW.Example.com", PAGE], max_age="10m")
    assert found == Cors((PAGE,), ("*",), (), (), credentials=False, max_age=timedelta(minutes=10))


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"origins": ["*"], "credentials": True}, "cors.origins"),
        ({"origins": [PAGE, "null"], "credentials": True}, "cors.origins"),
        ({"headers": ["*"], "credentials": True}, "cors.headers"),
        ({"expose": ["*"], "credentials": True}, "cors.expose"),
        ({"origins": []}, "cors.origins"),
        ({"origins": PAGE}, "cors.origins"),
        ({"origins": ["www.example.com"]}, "cors.origins"),
        ({"origins": [PAGE + "/"]}, "cors.origins"),
        ({"origins": [PAGE + "/path"]}, "cors.origins"),
        ({"origins": [PAGE + ":443"]}, "cors.origins"),
        ({"origins": ["http://a.example:80"]}, "cors.origins"),
        ({"origins": [PAGE + ":0"]}, "cors.origins"),
        ({"origins": [PAGE + ":99999"]}, "cors.origins"),
        ({"origins": ["https://user@www.example.com"]}, "cors.origins"),
        ({"origins": ["https://*"]}, "cors.origins"),
        ({"origins": ["https://*.com"]}, "cors.origins"),
        ({"origins": ["https://www.*.com"]}, "cors.origins"),
        ({"origins": ["https://*example.com"]}, "cors.origins"),
        ({"origins": ["https://a.example\r\nX: y"]}, "cors.origins"),
        ({"origins": [PAGE] * 101}, "cors.origins"),
        ({"methods": ["get"]}, "cors.methods"),
        ({"methods": []}, "cors.methods"),
        ({"headers": ["X Y"]}, "cors.headers"),
        ({"headers": ["X\r\nY: z"]}, "cors.headers"),
        ({"credentials": "yes"}, "cors.credentials"),
        ({"max_age": "2d"}, "cors.max_age"),
        ({"origin": PAGE}, "cors.origin"),
    ],
)
def test_what_no_browser_would_take_or_would_let_everybody_in_is_refused(keys: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        rule(**keys)
    assert caught.value.key == key


ORIGINS = ["https://www.example.com", "https://*.shop.example", "http://localhost:3000", "https://*.a.example:8443"]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (PAGE, True),
        ("https://WWW.example.com", False),
        ("HTTPS://www.example.com", False),
        ("http://www.example.com", False),
        ("https://www.example.com:443", False),
        ("https://www.example.com:8443", False),
        ("https://www.example.com.evil.example", False),
        ("https://evilwww.example.com", False),
        ("https://wwwxexample.com", False),
        ("https://www.example.com/", False),
        ("https://www.example.com\n", False),
        ("http://localhost:3000", True),
        ("http://localhost", False),
        ("http://localhost:30000", False),
        ("https://de.shop.example", True),
        ("https://a.b.shop.example", True),
        ("https://shop.example", False),
        ("https://evilshop.example", False),
        ("https://.shop.example", False),
        ("https://evil.example/.shop.example", False),
        ("https://evil.example#.shop.example", False),
        ("https://evil.example:80.shop.example", False),
        ("https://evil@de.shop.example", False),
        ("https://de.shop.example.", False),
        ("http://de.shop.example", False),
        ("https://x.a.example:8443", True),
        ("https://x.a.example", False),
        ("null", False),
        ("*", False),
        ("", False),
    ],
)
def test_origins_are_compared_exactly(origin: str, allowed: bool) -> None:
    assert rule(origins=ORIGINS).allows(origin) is allowed


def test_null_is_let_in_where_it_is_listed() -> None:
    assert rule(origins=[PAGE, "null"]).allows("null")
    below = rule(origins=["https://*.example.com"])
    assert below.allows(f"https://{'a.' * 100}example.com")
    assert not below.allows(f"https://{'a.' * 200}example.com"), "no name is so long, and comparing takes its time"
    assert not rule(origins=["https://null.example"]).allows("null")


Fields = list[tuple[str, str]]


async def asked(
    headers: dict[str, str] | Fields,
    *,
    method: str = "GET",
    worker: FakeWorker | None = None,
    interface: Interface = Interface.LAMBDA,
    **keys: Any,
) -> tuple[int, Fields, bytes]:
    """(status, fields, body) of one request to a function with these keys of `faas.toml`."""
    path, _ = data_path(worker or FakeWorker())
    put(path, revision(interface=interface, **keys))
    pairs = headers.items() if isinstance(headers, dict) else headers
    fields = "".join(f"{name}: {value}\r\n" for name, value in pairs)
    request = f"{method} /function/hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n"
    async with serving(application(path), **RUNNER_OPTIONS) as port:
        answer = await talk(port, request.encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    found = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]
    return int(lines[0].split()[1]), found, body


def said(fields: Fields) -> dict[str, str]:
    """What an answer says of CORS, and its Vary."""
    shown = [(name, value) for name, value in fields if name.lower().startswith("access-control-") or name == "Vary"]
    assert len(dict(shown)) == len(shown), f"said twice: {shown}"
    return dict(shown)


PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-a"}
PREFLIGHT_VARY = "Access-Control-Request-Method, Access-Control-Request-Headers"


async def test_a_preflight_is_answered_before_anybody_is_asked_for_credentials_and_no_function_runs() -> None:
    worker = FakeWorker()
    keys = {"methods": ["GET", "PUT"], "headers": ["X-A", "Authorization"], "max_age": "1h", "credentials": True}
    keys |= {"expose": ["X-Id"]}
    status, fields, body = await asked(
        PREFLIGHT, method="OPTIONS", worker=worker, public=False, cors={"origins": [PAGE], **keys}
    )
    assert (status, body, worker.invocations) == (204, b"", [])
    assert said(fields) == {
        ORIGIN: PAGE,
        CREDENTIALS: "true",
        "Access-Control-Allow-Methods": "GET, PUT",
        "Access-Control-Allow-Headers": "X-A, Authorization",
        "Access-Control-Max-Age": "3600",
        "Vary": f"{PREFLIGHT_VARY}, Origin",
    }


async def test_a_preflight_of_another_page_hears_nothing() -> None:
    status, fields, _ = await asked(
        {**PREFLIGHT, "Origin": "https://evil.example"}, method="OPTIONS", cors={"origins": [PAGE], "headers": ["X-A"]}
    )
    assert (status, said(fields)) == (204, {"Vary": f"{PREFLIGHT_VARY}, Origin"})
    assert "evil" not in str(fields)


async def test_for_all_pages_the_answer_is_the_same_for_each() -> None:
    status, fields, _ = await asked(PREFLIGHT, method="OPTIONS", cors={"origins": ["*"], "headers": ["*"]})
    assert status == 204
    assert said(fields) == {
        ORIGIN: "*",
        "Access-Control-Allow-Methods": "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        "Access-Control-Allow-Headers": "*",
        "Vary": PREFLIGHT_VARY,
    }
    assert said((await asked({"Origin": PAGE}, cors={"origins": ["*"]}))[1]) == {ORIGIN: "*"}
    assert said((await asked({}, cors={"origins": ["*"]}))[1]) == {ORIGIN: "*"}


@pytest.mark.parametrize("missing", ["Origin", "Access-Control-Request-Method"])
async def test_options_that_ask_nothing_go_to_the_function(missing: str) -> None:
    headers = {name: value for name, value in PREFLIGHT.items() if name != missing}
    status, _, body = await asked(headers, method="OPTIONS", cors={"origins": [PAGE]})
    assert status == 200
    assert json.loads(body)["requestContext"]["http"]["method"] == "OPTIONS"
    assert (await asked(headers, method="OPTIONS", public=False, cors={"origins": [PAGE]}))[0] == 401


@pytest.mark.parametrize(
    ("keys", "status"),
    [({}, 200), ({"public": False}, 401), ({"raises": Throttled()}, 429), ({"raises": OutOfMemory()}, 502)],
)
@pytest.mark.parametrize("page", [PAGE, "https://evil.example"])
async def test_every_answer_says_who_may_read_it_also_an_error(keys: dict[str, Any], status: int, page: str) -> None:
    async def answers(revision: Revision, event: bytes) -> InvocationResult:
        if raises is not None:
            raise raises
        return InvocationResult(b"{}")

    raises: FaasError | None = keys.get("raises")
    more = {key: value for key, value in keys.items() if key != "raises"}
    cors = {"origins": [PAGE], "expose": ["X-Id"], "credentials": True}
    got, fields, _ = await asked({"Origin": page}, worker=FakeWorker(answers), cors=cors, **more)
    assert got == status
    allowed = {ORIGIN: PAGE, CREDENTIALS: "true", "Access-Control-Expose-Headers": "X-Id"} if page == PAGE else {}
    assert said(fields) == {**allowed, "Vary": "Origin"}


OWN = (
    ("Access-Control-Allow-Origin", "*"),
    ("access-control-allow-credentials", "true"),
    ("Access-Control-Allow-Methods", "TRACE"),
    ("Access-Control-Expose-Headers", "Secret"),
    ("Access-Control-Allow-Private-Network", "true"),
    ("Vary", "Accept"),
    ("Vary", "Cookie, origin"),
    ("Content-Length", "2"),
)


@pytest.mark.parametrize("page", [PAGE, "https://evil.example", None])
async def test_what_the_function_says_of_cors_is_replaced_and_its_vary_kept(page: str | None) -> None:
    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, OWN, stream(b"ok"))

    headers = {"Origin": page} if page else {}
    worker = FakeWorker(on_request=on_request)
    _, fields, _ = await asked(headers, worker=worker, interface=Interface.HTTP, cors={"origins": [PAGE]})
    assert said([one for one in fields if one[0] != "Vary"]) == ({ORIGIN: PAGE} if page == PAGE else {})
    vary = ", ".join(value for name, value in fields if name == "Vary")
    assert {name.strip().lower() for name in vary.split(",")} == {"accept", "cookie", "origin"}


async def test_without_the_rule_cors_is_the_functions_own() -> None:
    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, OWN, stream(b"ok"))

    worker = FakeWorker(on_request=on_request)
    status, fields, _ = await asked(PREFLIGHT, method="OPTIONS", worker=worker, interface=Interface.HTTP)
    assert (status, dict(fields)[ORIGIN]) == (200, "*")
    assert said((await asked({"Origin": PAGE}))[1]) == {}


HOSTILE = "https://evil.example"


@pytest.mark.parametrize("cors", [None, {"origins": [PAGE], "credentials": True}, {"origins": ["https://*.a.example"]}])
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
@pytest.mark.parametrize(
    "claims",
    [
        [("Origin", HOSTILE)],
        [("Origin", PAGE), ("Origin", HOSTILE)],
        [("Origin", f"{PAGE}, {HOSTILE}")],
        [("Origin", f"{PAGE} {HOSTILE}")],
        [("Origin", "null")],
        [("Origin", "https://evil.example%0d%0aX: .a.example")],
        [("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "javascript"), ("Forwarded", "host=evil.example")],
        [("Referer", HOSTILE), ("X-Forwarded-For", "evil.example"), ("X-Original-URL", "/evil.example")],
        [("Access-Control-Request-Method", "EVIL"), ("Access-Control-Request-Headers", "x-evil"), ("Origin", HOSTILE)],
    ],
)
async def test_nothing_that_a_client_claims_comes_back_in_a_head(
    cors: dict[str, Any] | None, method: str, claims: Fields
) -> None:
    async def answers(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(b'"ok"')

    keys: dict[str, Any] = {"cors": cors} if cors else {}
    status, fields, body = await asked(claims, method=method, worker=FakeWorker(answers), **keys)
    assert status in (200, 204)
    assert "evil" not in str(fields).lower()
    assert b"evil" not in body
    assert {name for name in said(fields) if name != "Vary"} == set()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:99", "hello.example.org.evil.example"])
async def test_a_host_that_is_nobodys_is_not_said_back(host: str) -> None:
    path, _ = data_path(FakeWorker())
    put(path, revision())
    async with serving(application(path, domain="example.org"), **RUNNER_OPTIONS) as port:
        answer = await talk(port, f"GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"evil" not in answer
