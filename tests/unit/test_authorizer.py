"""Lambda authorizers: who comes in by a function's word, what the function that is called hears, and that whatever goes
wrong opens nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.errors import InstanceExited, SpecError, Throttled
from faas.leases import InvocationResult
from faas.protocol import Revision
from faas.rules import rules
from faas.rules.payload import Payload
from gateway.edge.auth import authorizer, policy
from gateway.edge.auth.authorizer import Verdicts
from gateway.edge.auth.policy import BadAnswer, Glob, Verdict, method_arn
from tests.support.control import DIGEST, Answered, Control, control, until

ARN = "arn:aws:execute-api:local:000000000000:hello/$default/GET/x"


class Gate:
    """The functions of these tests: `gate` answers as `says` is set, all others with their event."""

    def __init__(self) -> None:
        self.says: Any = {"isAuthorized": True}
        self.events: list[dict[str, Any]] = []
        self.wait = asyncio.Event()
        self.wait.set()

    async def invoke(self, revision: Revision, event: bytes) -> InvocationResult:
        if not revision.key.function.startswith("gate"):
            return InvocationResult(event)
        self.events.append(json.loads(event))
        await self.wait.wait()
        says = self.says
        if isinstance(says, BaseException):
            raise says
        if isinstance(says, InvocationResult):
            return says
        return InvocationResult(says if isinstance(says, bytes) else json.dumps(says).encode())


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def server(tmp_path: Path, gate: Gate) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        running.worker.on_invoke = gate.invoke
        await running.deploy("gate", public=False, scale={"max": 1})
        yield running


async def guarded(server: Control, name: str = "hello", *, namespace: str = "", **changes: Any) -> None:
    rule = {"authorizer": {"function": "gate", **changes}}
    await server.deploy(name, namespace=namespace, public=False, auth=rule)


async def ask(server: Control, path: str = "/function/hello/x", token: str = "t", **headers: str) -> Answered:
    sent = {"Authorization": token, **{k.replace("_", "-"): v for k, v in headers.items()}} if token else headers
    return await server.call("GET", path, public=True, headers=sent)


def document(*statements: dict[str, Any]) -> dict[str, Any]:
    filled = [{"Action": "execute-api:Invoke", **one} for one in statements]
    return {"principalId": "alice", "policyDocument": {"Version": "2012-10-17", "Statement": filled}}


def allow(resource: Any = "*") -> dict[str, Any]:
    return {"Effect": "Allow", "Resource": resource}


def deny(resource: Any = "*") -> dict[str, Any]:
    return {"Effect": "Deny", "Resource": resource}


async def test_a_yes_comes_in_with_its_context_and_a_no_does_not(server: Control, gate: Gate) -> None:
    await guarded(server)
    gate.says = {"isAuthorized": True, "context": {"tenant": "acme", "level": 7, "deep": {"a": [1]}}}
    answered = await ask(server, "/function/hello/x?a=1")
    assert answered.status == 200, answered.body
    assert answered.json()["requestContext"]["authorizer"]["lambda"] == gate.says["context"]
    gate.says = {"isAuthorized": False}
    refused = await ask(server, token="other")
    assert (refused.status, refused.json()["error"]["message"]) == (403, "this is not allowed")


async def test_the_authorizer_sees_the_request_and_not_its_body(server: Control, gate: Gate) -> None:
    await guarded(server, identity=["$request.header.Authorization", "$request.querystring.a", "$context.httpMethod"])
    await server.call("POST", "/function/hello/x?a=1&b", b"secret", public=True, headers={"Authorization": "t"})
    (event,) = gate.events
    assert (event["version"], event["type"], event["routeArn"]) == ("2.0", "REQUEST", ARN.replace("GET", "POST"))
    assert event["identitySource"] == ["t", "1", "POST"]
    assert (event["rawPath"], event["rawQueryString"], event["headers"]["authorization"]) == ("/x", "a=1&b", "t")
    assert "body" not in event
    assert "secret" not in json.dumps(event)


async def test_the_authorizer_judges_what_the_client_sent_and_not_what_the_route_makes_of_it(
    server: Control, gate: Gate
) -> None:
    changes = {"set": {"Authorization": "Basic ours"}, "remove": ["X-Tenant"]}
    route = {"path": "/x", "request_headers": changes}
    await server.deploy("hello", public=False, auth={"authorizer": {"function": "gate"}}, route=[route])
    answered = await ask(server, "/x", token="theirs", X_Tenant="a")
    (event,) = gate.events
    assert (event["headers"]["authorization"], event["headers"]["x-tenant"]) == ("theirs", "a")
    seen = answered.json()["headers"]
    assert (seen["authorization"], "x-tenant" in seen) == ("Basic ours", False), "the function is told the other"


async def test_no_identity_is_what_is_for_us_alone_or_what_we_say_ourselves(server: Control, gate: Gate) -> None:
    for number, name in enumerate(("X-Faas-Bypass", "X-Api-Key", "X-Forwarded-For", "x_real_ip")):
        rule = {"key": True, "authorizer": {"function": "gate", "identity": [f"$request.header.{name}"]}}
        body = {"spec": {"name": f"f{number}", "auth": rule}, "image": f"f{number}@{DIGEST}"}
        answered = await server.call("PUT", f"/v1/functions/f{number}", body)
        assert answered.status == 400, (name, answered.body)
        assert "auth.authorizer.identity" in answered.body.decode()
    rule = {"key": {"query": "k"}, "authorizer": {"function": "gate", "identity": ["$request.querystring.k"]}}
    with pytest.raises(SpecError, match=r"auth\.authorizer\.identity"):
        rules.parse("", {"auth": rule})


async def test_payload_format_1_is_a_rest_apis(server: Control, gate: Gate) -> None:
    await guarded(server, format="1.0")
    gate.says = {**document(allow(ARN)), "context": {"tenant": "acme"}}
    answered = await ask(server)
    assert answered.status == 200, answered.body
    (event,) = gate.events
    assert (event["version"], event["type"], event["methodArn"], event["identitySource"]) == (
        "1.0",
        "REQUEST",
        ARN,
        "t",
    )
    assert (event["httpMethod"], event["path"]) == ("GET", "/x")
    assert answered.json()["requestContext"]["accountId"] == "alice"
    gate.says = {"isAuthorized": True}
    assert (await ask(server, token="other")).status == 500, "in format 1.0 only a policy is an answer"


async def test_without_an_identity_nobody_is_asked(server: Control, gate: Gate) -> None:
    await guarded(server, identity=["$request.header.X-Id", "$request.querystring.key"])
    for path, headers in (("?key=1", {}), ("", {"X_Id": "7"}), ("?key=", {"X_Id": "7"}), ("?key=1", {"X_Id": ""})):
        answered = await ask(server, f"/function/hello{path}", **headers)
        assert (answered.status, answered.headers["WWW-Authenticate"]) == (401, 'Bearer realm="faas"')
    assert gate.events == []
    assert (await ask(server, "/function/hello?key=1", X_Id="7")).status == 200


async def test_an_answer_is_kept_for_the_same_identity_at_the_same_place(server: Control, gate: Gate) -> None:
    await guarded(server)
    await guarded(server, "second")
    for _ in range(3):
        assert (await ask(server)).status == 200
    assert len(gate.events) == 1
    await ask(server, token="other")
    await ask(server, "/function/second")
    assert len(gate.events) == 3
    gate.says = {"isAuthorized": False}
    assert (await ask(server, token="third")).status == 403
    assert (await ask(server, token="third")).status == 403
    assert len(gate.events) == 4, "a no is kept as well"
    assert (await ask(server)).status == 200, "kept"
    await server.deploy("gate", public=False)
    assert (await ask(server)).status == 403, "a new revision is asked anew"


async def test_nothing_is_kept_where_the_rule_says_so(server: Control, gate: Gate) -> None:
    await guarded(server, ttl="0s", identity=[])
    assert [(await ask(server, token="")).status for _ in range(3)] == [200, 200, 200]
    assert len(gate.events) == 3


async def test_many_at_once_ask_once(server: Control, gate: Gate) -> None:
    await guarded(server)
    gate.wait.clear()
    asked = [asyncio.create_task(ask(server)) for _ in range(20)]
    await until(lambda: gate.events)
    gate.wait.set()
    assert [answered.status for answered in await asyncio.gather(*asked)] == [200] * 20
    assert len(gate.events) == 1


async def test_a_deny_is_of_whatever_the_function_may_take_the_request_for(server: Control, gate: Gate) -> None:
    await guarded(server)
    gate.says = document(allow(), deny(ARN[:-1] + "admin"))
    for method, path, status in (
        ("GET", "/admin", 403), ("GET", "/admin/", 403), ("HEAD", "/admin", 403), ("HEAD", "/%61dmin/", 403),
        ("POST", "/admin", 200), ("GET", "/admins/", 200), ("HEAD", "/x", 200), ("GET", "/", 200),
    ):  # fmt: skip
        headers = {"Authorization": "t"}
        answered = await server.call(method, f"/function/hello{path}", public=True, headers=headers)
        assert answered.status == status, (method, path)
    gate.says = document(allow(ARN[:-1] + "users/*"))
    assert (await ask(server, "/function/hello/users/", token="other")).status == 200, "to allow takes its own spelling"


async def test_a_kept_policy_is_looked_at_for_each_request(server: Control, gate: Gate) -> None:
    await guarded(server)
    gate.says = document(allow(ARN[:-1] + "*"), deny("*/admin*"))
    statuses = [
        (await ask(server, f"/function/hello{path}")).status
        for path in ("/x", "/y/z", "/admin", "/admin/x", "/%61dmin", "/x%2Fadmin")
    ]
    assert statuses == [200, 200, 403, 403, 403, 403]
    assert len(gate.events) == 1
    doubtful = ("/y/../admin", "/y/%2e%2E/admin", "//admin", "/./admin", "/y\\..\\admin", "/admin%00")
    for path in (*doubtful, "/" + "x" * 2048):
        assert (await ask(server, f"/function/hello{path}")).status == 403, path
    posted = await server.call("POST", "/function/hello/x", b"", public=True, headers={"Authorization": "t"})
    assert posted.status == 403, "GET is allowed, and nothing else"


@pytest.mark.parametrize(
    "says",
    [
        {}, [], b"", b"yes", b"[" * 5000, {"isAuthorized": "true"}, {"isAuthorized": 1}, {"isAuthorized": None},
        {"isAuthorized": True, "context": []}, {"isAuthorized": True, "context": {"a": "x" * 11_000}},
        {"policyDocument": {"Statement": []}}, {"principalId": "a", "policyDocument": {}},
        {"principalId": "", **{k: v for k, v in document(allow()).items() if k != "principalId"}},
        document({**allow(), "Effect": "allow"}), document({**allow(), "Condition": {}}),
        document({"Effect": "Allow", "NotResource": "x"}), document({"Effect": "Allow"}),
        document({**allow(), "Action": []}), document({**allow(), "Resource": [1]}), document(allow("x" * 9000)),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_answer_is_none(says: Any) -> None:
    with pytest.raises(BadAnswer):
        policy.read(says if isinstance(says, bytes) else json.dumps(says).encode(), Payload.V2)


async def test_whatever_goes_wrong_is_a_500_that_tells_nothing(
    server: Control, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    await guarded(server)
    failed = InvocationResult(b'{"errorMessage": "boom of a secret"}', error_type="ValueError")
    for number, says in enumerate((b"yes", failed, InstanceExited("gone, with a secret"))):
        gate.says = says
        answered = await ask(server, token=str(number))
        assert (answered.status, answered.json()["error"]["code"]) == (500, "AuthorizerFailed")
        assert b"secret" not in answered.body
    assert "gone, with a secret" in caplog.text, "who runs the server reads why"
    await guarded(server, "other", function="nowhere")
    assert (await ask(server, "/function/other")).status == 500
    gate.says = {"isAuthorized": True}
    assert (await ask(server, token="0")).status == 200, "a failure is not kept"


async def test_an_authorizer_without_capacity_is_said_as_such_and_one_that_hangs_is_given_up(
    server: Control, gate: Gate
) -> None:
    await guarded(server, timeout=1)
    gate.says = Throttled("full", reason="ReservedFunctionConcurrentInvocationLimitExceeded")
    answered = await ask(server)
    assert (answered.status, answered.headers["Reason"]) == (429, "ReservedFunctionConcurrentInvocationLimitExceeded")
    gate.wait.clear()
    assert (await ask(server)).status == 500
    gate.wait.set()


async def test_a_function_refuses_credentials_by_failing_with_this_word(server: Control, gate: Gate) -> None:
    await guarded(server)
    gate.says = InvocationResult(b'{"errorMessage": "Unauthorized"}', error_type="Error")
    assert (await ask(server)).status == 401
    gate.says = {"isAuthorized": True}
    assert (await ask(server)).status == 200, "what it refused so is not kept"


async def test_an_authorizer_is_one_of_its_own_namespace(server: Control, gate: Gate) -> None:
    await guarded(server, namespace="team")
    assert (await ask(server, "/function/hello.team")).status == 500
    await server.deploy("gate", namespace="team", public=False)
    assert (await ask(server, "/function/hello.team")).status == 200


async def test_an_authorizers_run_is_an_invocation_of_its_own(server: Control, gate: Gate) -> None:
    await guarded(server)
    answered = await ask(server)
    ids = [invocation.request_id for invocation in server.worker.invocations]
    assert len(set(ids)) == len(ids) == 2
    assert answered.headers["X-Request-Id"] == ids[1]


async def test_an_authorizer_is_shown_no_key_of_the_server(server: Control, gate: Gate) -> None:
    rule = {"authorizer": {"function": "gate"}, "key": {"query": "key"}, "token": True}
    await server.deploy("hello", public=False, auth=rule)
    key = (await server.call("POST", "/v1/keys", {"name": "partner", "functions": ["other"]})).json()["key"]
    answered = await ask(server, f"/function/hello?key={key}&a=1")
    assert answered.status == 200, answered.body
    assert key not in json.dumps(gate.events)
    narrow = await server.a_token("caller", "default", ("other",))
    assert (await ask(server, token=f"Bearer {narrow}")).status == 403
    assert narrow not in json.dumps(gate.events)


def test_kept_answers_end_with_their_time_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    kept = Verdicts(lambda: now)
    yes = Verdict(True)
    kept.keep("a", yes, 10, 5.0)
    assert kept.get("a") is yes
    now = 5.0
    assert kept.get("a") is None
    monkeypatch.setattr(authorizer, "KEPT", 3)
    for name in "abcd":
        kept.keep(name, yes, 10, 5.0)
    assert [kept.get(name) is not None for name in "abcd"] == [False, True, True, True]
    kept.get("b")
    kept.keep("e", yes, 10, 5.0)
    assert kept.get("b") is yes, "the longest unused goes"
    monkeypatch.setattr(authorizer, "KEPT_BYTES", 25)
    kept.keep("f", yes, 10, 5.0)
    assert [kept.get(name) is not None for name in "debf"] == [False, False, True, True]
    kept.keep("big", yes, 26, 5.0)
    assert kept.get("big") is None


def allows(*statements: dict[str, Any], path: str = "/x") -> bool:
    verdict = policy.read(json.dumps(document(*statements)).encode(), Payload.V1)
    return verdict.allows([method_arn("hello", "$default", "GET", path)])


def test_an_explicit_deny_wins_and_what_nothing_allows_is_denied() -> None:
    assert allows(allow())
    assert allows(allow(["nothing", ARN]))
    assert not allows(deny(), allow())
    assert not allows(allow(), deny(ARN))
    assert allows(allow(), deny(ARN + "y"))
    assert not allows()
    assert not allows({**allow(), "Action": "execute-api:ManageConnections"})
    assert not allows({**allow(), "Action": "s3:*"})
    assert allows({**allow(), "Action": ["s3:*", "EXECUTE-API:*"]})
    assert allows({**allow(), "Action": "*"})
    assert allows({**deny(), "Action": "execute-api:Invalidate*"}, allow())


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("*", "", True), ("*", "a/b", True), ("", "", True), ("", "a", False), ("a", "a", True), ("a", "ab", False),
        ("a?c", "abc", True), ("a?c", "ac", False), ("a*c", "ac", True), ("a*c", "abbc", True), ("a*c", "abb", False),
        ("*a*", "xax", True), ("a*a", "a", False), ("a*b*c", "abc", True), ("a*b*c", "acb", False), ("**", "x", True),
        ("a.c", "abc", False), ("[ab]", "a", False), ("a\\?", "a\\b", True), ("*?", "", False), ("?*", "a\nb", True),
        ("*ab", "aab", True), ("*/GET/*", "api/s/GET/", True), ("*/GET/*", "api/s/GE/T", False), ("$x", "$x", True),
    ],
)  # fmt: skip
def test_patterns_have_iams_two_wildcards_and_no_other(pattern: str, text: str, fits: bool) -> None:
    assert Glob.of(pattern).matches(text) is fits


def test_no_pattern_takes_long_over_a_text() -> None:
    """A hundred stars against as many near misses: what goes back and forth would not end within the test's time."""
    began = time.process_time()
    assert not Glob.of("a*" * 2000 + "b").matches("a" * 16_000)
    assert not Glob.of("*a?b" * 1000 + "c").matches("aab" * 5000)
    assert time.process_time() - began < 60
