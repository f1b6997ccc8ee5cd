"""Payload format 2.0, both ways."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from faas.errors import BadFunctionResponse
from gateway.event import encode, http_answer, http_event


def event(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "method": "POST",
        "path": "/a%2Fb/ö",
        "query": "",
        "fields": [("host", "localhost:8080"), ("user-agent", "curl/8"), ("x-a", "1"), ("x-a", "2")],
        "body": b"",
        "protocol": "HTTP/1.1",
        "source_ip": "127.0.0.1",
        "request_id": "r-1",
        "function": "hello",
        "account": "anonymous",
        "now": 1584039838.390,
    }
    return http_event(**{**given, **changes})


def test_an_event_has_the_shape_of_payload_format_2() -> None:
    made = event()
    assert made == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/a%2Fb/ö",
        "rawQueryString": "",
        "headers": {"host": "localhost:8080", "user-agent": "curl/8", "x-a": "1,2"},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "hello",
            "domainName": "localhost:8080",
            "domainPrefix": "hello",
            "http": {
                "method": "POST",
                "path": "/a%2Fb/ö",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "curl/8",
            },
            "requestId": "r-1",
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1584039838390,
        },
        "isBase64Encoded": False,
    }
    assert json.loads(encode(made)) == made


def test_cookies_are_a_list_and_no_header() -> None:
    made = event(fields=[("cookie", "a=1; b=2"), ("cookie", "c=3")])
    assert made["cookies"] == ["a=1", "b=2", "c=3"]
    assert made["headers"] == {}


def test_query_parameters_are_decoded_and_joined() -> None:
    made = event(query="a=1&a=2&b=x%20y+z&c=&d")
    assert made["rawQueryString"] == "a=1&a=2&b=x%20y+z&c=&d"
    assert made["queryStringParameters"] == {"a": "1,2", "b": "x y z", "c": "", "d": ""}


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain", "grüezi".encode(), True),
        ("text/plain", b"\xff\xfe", False),
        ("application/json; charset=utf-8", b"{}", True),
        ("application/vnd.api+json", b"{}", True),
        ("application/x-www-form-urlencoded", b"a=1", True),
        ("application/x-www-form-urlencoded", b"\xff\xd8\xff photo", False),
        ("", b"plain", True),
        ("", b"\x89PNG", False),
        ("image/png", b"ascii all the same", False),
        ("application/octet-stream", b"ascii", False),
    ],
)
def test_bodies_are_text_where_type_and_bytes_say_so_else_base64(content_type: str, body: bytes, text: bool) -> None:
    made = event(body=body, fields=[("content-type", content_type)] if content_type else [])
    assert made["isBase64Encoded"] is not text
    assert made["body"] == (body.decode() if text else base64.b64encode(body).decode())


def test_a_compressed_body_is_bytes_whatever_its_type() -> None:
    made = event(body=b"zip", fields=[("content-type", "text/plain"), ("content-encoding", "gzip")])
    assert made["isBase64Encoded"]


def answer(**value: Any) -> tuple[int, dict[str, str], bytes]:
    status, headers, body = http_answer(json.dumps(value).encode())
    return status, dict(headers), body


def test_an_answer_is_status_headers_and_body() -> None:
    status, headers, body = answer(statusCode=201, headers={"X-A": "ü", "X-N": 5, "X-B": True}, body="héllo")
    assert status == 201
    assert headers == {"X-A": "ü", "X-N": "5", "X-B": "true", "Content-Type": "application/json"}
    assert body == "héllo".encode()


def test_cookies_and_several_values_are_fields_of_their_own() -> None:
    payload = {"statusCode": 200, "cookies": ["a=1", "b=2; Secure"], "multiValueHeaders": {"X-A": ["1", "2"]}}
    _, headers, _ = http_answer(json.dumps({**payload, "headers": {"x-a": "hidden"}}).encode())
    assert headers.getall("Set-Cookie") == ["a=1", "b=2; Secure"]
    assert headers.getall("X-A") == ["1", "2"]


def test_base64_is_decoded_and_other_bodies_are_json() -> None:
    assert answer(statusCode=200, isBase64Encoded=True, body="AP8=")[2] == b"\x00\xff"
    assert answer(statusCode=200, body={"a": 1})[2] == b'{"a": 1}'
    assert answer(statusCode=204)[2] == b""
    assert answer(statusCode="404")[0] == 404


@pytest.mark.parametrize(
    "payload", [b'{"a":1}', b"[1, 2]", b'"text"', b"42", b"null", b"true", b'{"x":{"statusCode":1}}']
)
def test_a_value_without_status_code_is_the_body_byte_for_byte(payload: bytes) -> None:
    status, headers, body = http_answer(payload)
    assert (status, headers["Content-Type"], body) == (200, "application/json", payload)


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (b"Hello", "text/plain; charset=utf-8"),
        (b"NaN", "text/plain; charset=utf-8"),
        (b"\xff\xd8\xff", "application/octet-stream"),
        (b"", "application/json"),
        (b'"statusCode" and more', "text/plain; charset=utf-8"),
    ],
)
def test_what_is_not_json_goes_out_unchanged_under_another_type(payload: bytes, content_type: str) -> None:
    status, headers, body = http_answer(payload)
    assert (status, headers["Content-Type"], body) == (200, content_type, payload)


@pytest.mark.parametrize(
    "value",
    [
        {"statusCode": 100},
        {"statusCode": 101},
        {"statusCode": 99},
        {"statusCode": 600},
        {"statusCode": 10**30},
        {"statusCode": "2e2"},
        {"statusCode": True},
        {"statusCode": None},
        {"statusCode": 200.5},
        {"statusCode": 200, "headers": ["X"]},
        {"statusCode": 200, "headers": {"X": []}},
        {"statusCode": 200, "headers": {"X": "a\r\nSet-Cookie: stolen=1"}},
        {"statusCode": 200, "headers": {"X\r\nY": "a"}},
        {"statusCode": 200, "headers": {"X Y": "a"}},
        {"statusCode": 200, "headers": {"": "a"}},
        {"statusCode": 200, "headers": {"X": "a\u0000"}},
        {"statusCode": 200, "headers": {"X": "\ud800"}},
        {"statusCode": 200, "headers": {"X": "a" * 70_000}},
        {"statusCode": 200, "cookies": ["a=1\nb"]},
        {"statusCode": 200, "cookies": ["a=1"] * 500},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "multiValueHeaders": {"X": "a"}},
        {"statusCode": 200, "isBase64Encoded": True, "body": "no base64!"},
        {"statusCode": 200, "isBase64Encoded": True, "body": "ö"},
        {"statusCode": 200, "body": "\ud800"},
    ],
)
def test_an_answer_that_http_does_not_allow_is_the_functions_fault(value: dict[str, Any]) -> None:
    with pytest.raises(BadFunctionResponse):
        http_answer(json.dumps(value).encode())


def test_framing_and_hop_by_hop_fields_of_an_answer_are_dropped() -> None:
    fields = {
        "Connection": "close, X-Named",
        "X-Named": "1",
        "Transfer-Encoding": "chunked",
        "Content-Length": "999",
        "Keep-Alive": "1",
        "Upgrade": "h2c",
        "X-Request-Id": "forged",
        "X-Kept": "1",
    }
    _, headers, _ = answer(statusCode=200, headers=fields, body="x")
    assert set(headers) == {"X-Kept", "Content-Type"}
