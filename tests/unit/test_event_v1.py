"""Payload format 1.0, both ways, beside 2.0 where they differ: shapes as AWS documents them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from faas.errors import BadFunctionResponse
from faas.leases import Trigger
from gateway.delivery import http_payload
from gateway.event import Routed, encode, http_event
from gateway.event_v1 import http_answer_v1, http_event_v1
from gateway.store.invocations import Kind, QueuedEvent

ROUTED = Routed("shop", "GET /users/{id}", "prod", {"id": "a b"}, {"color": "blue"}, stage_at=0)


def given(**changes: Any) -> dict[str, Any]:
    return {
        "method": "GET",
        "path": "/users/a%20b",
        "query": "parameter1=value1&parameter1=value2&parameter2=value",
        "fields": [
            ("host", "id.example.org"),
            ("user-agent", "agent"),
            ("header2", "value1"),
            ("header2", "value2"),
            ("cookie", "a=1; b=2"),
        ],
        "body": b"Hello",
        "protocol": "HTTP/1.1",
        "source_ip": "192.0.2.1",
        "request_id": "r-1",
        "function": "hello",
        "account": "anonymous",
        "now": 1583348638.390,
        **changes,
    }


def test_an_event_has_the_shape_of_payload_format_1() -> None:
    made = http_event_v1(**given(routed=ROUTED, path="/prod/users/a%20b"))
    assert made == {
        "version": "1.0",
        "resource": "/users/{id}",
        "path": "/users/a%20b",
        "httpMethod": "GET",
        "headers": {"host": "id.example.org", "user-agent": "agent", "header2": "value2", "cookie": "a=1; b=2"},
        "multiValueHeaders": {
            "host": ["id.example.org"],
            "user-agent": ["agent"],
            "header2": ["value1", "value2"],
            "cookie": ["a=1; b=2"],
        },
        "queryStringParameters": {"parameter1": "value2", "parameter2": "value"},
        "multiValueQueryStringParameters": {"parameter1": ["value1", "value2"], "parameter2": ["value"]},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "shop",
            "authorizer": {"claims": None, "scopes": None},
            "domainName": "id.example.org",
            "domainPrefix": "id",
            "extendedRequestId": "r-1",
            "httpMethod": "GET",
            "identity": {
                "accessKey": None,
                "accountId": None,
                "caller": None,
                "cognitoAuthenticationProvider": None,
                "cognitoAuthenticationType": None,
                "cognitoIdentityId": None,
                "cognitoIdentityPoolId": None,
                "principalOrgId": None,
                "sourceIp": "192.0.2.1",
                "user": None,
                "userAgent": "agent",
                "userArn": None,
            },
            "path": "/prod/users/a%20b",
            "protocol": "HTTP/1.1",
            "requestId": "r-1",
            "requestTime": "04/Mar/2020:19:03:58 +0000",
            "requestTimeEpoch": 1583348638390,
            "resourceId": None,
            "resourcePath": "/users/{id}",
            "stage": "prod",
        },
        "pathParameters": {"id": "a b"},
        "stageVariables": {"color": "blue"},
        "body": "Hello",
        "isBase64Encoded": False,
    }
    assert json.loads(encode(made)) == made


@pytest.mark.parametrize(
    ("came", "at", "path"),
    [("/prod", 0, "/"), ("/prod/", 0, "/"), ("/prod/prod/x", 0, "/prod/x"), ("/%70rod/x", 0, "/x"),
     ("/base/prod/x", 1, "/base/x"), ("/base/prod", 1, "/base"), ("/a/b/prod/x/", 2, "/a/b/x/"),
     ("/prod/x", -1, "/prod/x"), ("/x", -1, "/x")],
)  # fmt: skip
def test_a_path_of_format_1_is_without_its_stage_and_with_its_base(came: str, at: int, path: str) -> None:
    routed = replace(ROUTED, stage_at=at)
    made = http_event_v1(**given(routed=routed, path=came))
    assert (made["path"], made["requestContext"]["path"]) == (path, came)
    assert http_event(**given(routed=routed, path=came))["rawPath"] == came
    assert http_event_v1(**given(path="/$default/x"))["path"] == "/$default/x"


def test_what_a_request_has_not_is_null_in_1_and_left_out_in_2() -> None:
    bare = given(query="", body=b"", fields=[])
    first, second = http_event_v1(**bare), http_event(**bare)
    nothing = (
        "queryStringParameters", "multiValueQueryStringParameters", "pathParameters", "stageVariables", "body",
    )  # fmt: skip
    assert [first[key] for key in nothing] == [None] * 5
    assert not {*nothing, "cookies"} & second.keys()
    assert first["resource"] == first["requestContext"]["resourcePath"] == second["routeKey"] == "$default"
    assert first["requestContext"]["path"] == first["path"] == second["rawPath"]


def test_a_route_gives_format_2_its_key_parameters_variables_and_stage() -> None:
    made = http_event(**given(routed=ROUTED))
    context = made["requestContext"]
    assert made["routeKey"] == context["routeKey"] == "GET /users/{id}"
    assert (made["pathParameters"], made["stageVariables"]) == ({"id": "a b"}, {"color": "blue"})
    assert (context["apiId"], context["domainPrefix"], context["stage"]) == ("shop", "id", "prod")
    assert "authorizer" not in context


JWT = {"jwt": {"claims": {"sub": "u1", "admin": "true"}, "scopes": ["read", "write"]}}
SAID = {"lambda": {"plan": "gold", "limit": 5, "beta": True, "none": None}}


def test_the_authorizers_word_is_nested_in_2_and_flat_texts_in_1() -> None:
    def authorizers(context: dict[str, Any]) -> list[Any]:
        routed = Routed(authorizer=context)
        makers = (http_event, http_event_v1)
        return [make(**given(routed=routed, account="u1"))["requestContext"]["authorizer"] for make in makers]

    assert authorizers(JWT) == [JWT, JWT["jwt"]]
    flat = {"principalId": "u1", "plan": "gold", "limit": "5", "beta": "true", "none": None}
    assert authorizers(SAID) == [SAID, flat]


@pytest.mark.parametrize("make", [http_event, http_event_v1])
@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [("application/json", b"{}", True), ("text/plain", b"\xff", False), ("image/png", b"ascii", False)],
)
def test_bodies_are_base64_by_the_same_rule_in_both(make: Any, content_type: str, body: bytes, text: bool) -> None:
    made = make(**given(body=body, fields=[("content-type", content_type)]))
    assert made["isBase64Encoded"] is not text


@pytest.mark.parametrize("make", [http_event, http_event_v1])
def test_bytes_that_are_not_utf_8_become_percent_encoded_and_every_event_is_valid_utf_8(make: Any) -> None:
    raw = b"/caf\xc3\xa9/\xff%2F".decode("utf-8", "surrogateescape")
    made = make(**given(path=raw, query="a=\udcfe&b=%FF&c=%C3%A9", fields=[("x", "\xff\xc3\xa9")]))
    path = made.get("rawPath") or made["path"]
    assert path == "/café/%FF%2F"
    assert made["queryStringParameters"] == {"a": "\ufffd", "b": "\ufffd", "c": "é"}
    assert made.get("rawQueryString", "a=%FE&b=%FF&c=%C3%A9") == "a=%FE&b=%FF&c=%C3%A9"
    json.dumps(made, ensure_ascii=False).encode()  # no half of a surrogate pair anywhere


@pytest.mark.parametrize(("payload", "path"), [("1.0", "path"), ("2.0", "rawPath")])
def test_a_queued_request_becomes_an_event_of_the_functions_format(payload: str, path: str) -> None:
    meta = {"method": "POST", "path": "/a", "query": "", "fields": [["host", "h"]], "source_ip": "192.0.2.1"}
    meta |= {"label": "hello", "account": "anonymous"}
    queued = QueuedEvent(
        id="r-1",
        namespace="default",
        function="hello",
        trigger=Trigger.ASYNC,
        kind=Kind.HTTP,
        payload=b"x",
        meta=meta,
        created_at=0.0,
    )
    made = json.loads(http_payload(queued, payload))
    assert (made["version"], made[path], made["body"]) == (payload, "/a", "x")


def answered(**value: Any) -> tuple[int, list[tuple[str, str]], bytes]:
    status, headers, body = http_answer_v1(json.dumps(value).encode())
    return status, list(headers.items()), body


def test_both_kinds_of_headers_are_one_list_and_a_pair_in_both_is_there_once() -> None:
    status, headers, body = answered(
        statusCode=201,
        headers={"X-A": "1", "X-B": "b", "Content-Type": "text/html"},
        multiValueHeaders={"x-a": ["1", "2"], "Set-Cookie": ["a=1", "b=2"]},
        body="AP8=",
        isBase64Encoded=True,
    )
    assert (status, body) == (201, b"\x00\xff")
    assert headers == [
        ("X-B", "b"),
        ("Content-Type", "text/html"),
        ("x-a", "1"),
        ("x-a", "2"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
    ]


def test_an_answer_without_body_or_type_is_empty_json() -> None:
    assert answered(statusCode="204") == (204, [("Content-Type", "application/json")], b"")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a": 1}',
        b'"text"',
        b"NaN",
        b"",
        b"\xff\xd8",
        b'{"statusCode": 200, "body": {"a": 1}}',
        b'{"statusCode": 200, "body": "no base64!", "isBase64Encoded": true}',
        b'{"statusCode": 200, "headers": {"X": "a\\r\\nSet-Cookie: stolen=1"}}',
        b'{"statusCode": 200, "multiValueHeaders": {"X": "a"}}',
        b'{"statusCode": 101}',
        b"[" * 100_000,
    ],
)
def test_in_format_1_nothing_is_inferred_and_what_is_no_answer_is_the_functions_fault(payload: bytes) -> None:
    with pytest.raises(BadFunctionResponse):
        http_answer_v1(payload)


def test_cookies_are_of_format_2_alone() -> None:
    assert answered(statusCode=200, cookies=["a=1"])[1] == [("Content-Type", "application/json")]
