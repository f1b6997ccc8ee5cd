"""HTTP requests as Lambda events, and Lambda answers as HTTP responses: payload format 2.0 (function URLs, HTTP APIs).

The event's shape: `version`, `routeKey`, `rawPath`, `rawQueryString`, `cookies`, `headers`, `queryStringParameters`,
`pathParameters`, `stageVariables`, `requestContext`, `body`, `isBase64Encoded`; what a request has not is left out.
The answer's: `statusCode`, `headers`, `cookies`, `body`, `isBase64Encoded`; a value without `statusCode` is the body of
a 200 itself. A streamed answer has a prelude: JSON with `statusCode`, `headers` and `cookies`, then eight NUL bytes
before its body. Format 1.0 is `gateway.event_v1`.

What holds in both formats: names of fields are lower case; `path` and `query` are as they were written, but for bytes
that are not UTF-8, which are percent-encoded (no JSON text holds them); parameters are decoded; a body is text where
its type says text and it is UTF-8, else base64.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from multidict import CIMultiDict

from faas.errors import BadFunctionResponse
from gateway.headers import outbound

DEFAULT = "$default"  # the route and the stage of what came by a function's own path
NOTHING: Mapping[str, Any] = {}
Answer = tuple[int, CIMultiDict[str], bytes]  # status, checked headers, body
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TEXT_TYPES = frozenset(
    {
        "application/json",
        "application/xml",
        "application/javascript",
        "application/graphql",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",
    }
)
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # made once: `json.dumps` makes one a call
_JSON_BEGINS = frozenset(b'{["-0123456789tfn')
_JSON_FIRST = frozenset(bytes([byte]) for byte in _JSON_BEGINS)
_JSON_TYPE = "application/json"
STREAMED = "application/vnd.awslambda.http-integration-response"  # the content type of an answer with a prelude
PRELUDE_END = b"\0" * 8
PRELUDE_BYTES = 65_536
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Routed:
    """By which route a request came (see `gateway.edge.entry.Entry`); the default is a function's own path.

    `authorizer`: what the caller's credentials say of them, `{"jwt": {claims, scopes}}` or `{"lambda": {…}}`.
    """

    api: str = ""
    pattern: str = DEFAULT
    stage: str = DEFAULT
    parameters: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    variables: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    authorizer: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    stage_at: int = -1


OWN_PATH = Routed()


def http_event(
    *,
    method: str,
    path: str,
    query: str,
    fields: Iterable[tuple[str, str]],
    body: bytes,
    protocol: str,
    source_ip: str,
    request_id: str,
    function: str,
    account: str,
    now: float,
    routed: Routed = OWN_PATH,
) -> dict[str, Any]:
    """The event of one request. `path` and `query` as written in its target, without `/function/NAME`;
    `fields` with names in lower case; `account` is who called, or "anonymous"; `now` is Unix time."""
    path, query = written(path), written(query)
    headers: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in fields:
        if name == "cookie":
            cookies += [cookie.strip() for cookie in value.split(";") if cookie.strip()]
        elif name in headers:
            headers[name] += "," + value
        else:
            headers[name] = value
    host = headers.get("host", "")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": routed.pattern,
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": account,
            "apiId": routed.api or function,
            "domainName": host,
            "domainPrefix": host.partition(".")[0] if routed.api else function,
            "http": {
                "method": method,
                "path": path,
                "protocol": protocol,
                "sourceIp": source_ip,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": request_id,
            "routeKey": routed.pattern,
            "stage": routed.stage,
            "time": clock_time(int(now)),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if routed is not OWN_PATH:
        event |= _routed(routed)
        if routed.authorizer:
            event["requestContext"]["authorizer"] = dict(routed.authorizer)
    if cookies:
        event["cookies"] = cookies
    if query:
        parameters = _parameters(query)
        if parameters:
            event["queryStringParameters"] = parameters
    if body:
        event["body"], event["isBase64Encoded"] = body_text(body, headers)
    return event


def _routed(routed: Routed) -> dict[str, Any]:
    found = {"pathParameters": dict(routed.parameters), "stageVariables": dict(routed.variables)}
    return {key: value for key, value in found.items() if value}


def body_text(body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
    """(`body`, `isBase64Encoded`) of an event whose request has these fields."""
    text = None if "content-encoding" in headers else _text(body, headers.get("content-type", ""))
    return (base64.b64encode(body).decode(), True) if text is None else (text, False)


def written(target: str) -> str:
    """A path or query as it was written; bytes that are not UTF-8 (surrogates here) percent-encoded."""
    return target if target.isascii() else _NOT_UTF8.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", target)


def encode(event: Any) -> bytes:
    """An event as the bytes that the function is given."""
    return _ENCODE(event).encode()


@functools.lru_cache(maxsize=4)
def clock_time(now: int) -> str:
    """`12/Mar/2020:19:03:58 +0000`, in English whatever the locale is."""
    t = time.gmtime(now)
    return f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"


def query_pairs(query: str) -> list[tuple[str, str]]:
    """Decoded; `+` is a space, a name without a value has an empty one."""
    return parse_qsl(query, keep_blank_values=True)


def _parameters(query: str) -> dict[str, str]:
    """Decoded, values of one name joined by commas."""
    parameters: dict[str, str] = {}
    for name, value in query_pairs(query):
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    return parameters


def _text(body: bytes, content_type: str) -> str | None:
    """The body as text, where its type says text (or nothing) and it is UTF-8; else None."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind and not (kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml"))):
        return None
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def http_answer(payload: bytes, content_type: str = "application/json") -> Answer:
    """A function's payload → (status, checked headers, body). Raises BadFunctionResponse.

    A payload that is not JSON goes out as it is, as text or bytes: runtime clients do post such. One that was streamed
    and collected has its prelude.
    """
    if is_streamed(content_type):
        return collected(payload)
    if b'"statusCode"' not in payload:
        return 200, CIMultiDict({"Content-Type": _plain_type(payload, content_type)}), payload
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return 200, CIMultiDict({"Content-Type": _plain_type(b"?" + payload, content_type)}), payload
    if not isinstance(value, dict) or "statusCode" not in value:
        return 200, CIMultiDict({"Content-Type": content_type}), payload
    headers = outbound(fields_of(value))
    headers.setdefault("Content-Type", "application/json")
    return status_of(value["statusCode"]), headers, _body(value)


def is_plain_json(payload: bytes, content_type: str) -> bool:
    """Whether it certainly goes out as it is, as JSON: `http_answer` need not be asked."""
    return content_type == _JSON_TYPE and payload[:1] in _JSON_FIRST and b'"statusCode"' not in payload


def is_streamed(content_type: str) -> bool:
    """Whether an answer has a prelude."""
    return content_type.partition(";")[0].strip().lower() == STREAMED


def collected(payload: bytes) -> Answer:
    """A streamed answer as a whole."""
    prelude, end, body = payload.partition(PRELUDE_END)
    return *streamed_head(prelude if end else None, STREAMED), body


def streamed_head(prelude: bytes | None, content_type: str) -> tuple[int, CIMultiDict[str]]:
    """(status, checked headers) of a streamed answer, whose prelude may be None. Raises BadFunctionResponse."""
    if prelude is None:
        if is_streamed(content_type):
            raise BadFunctionResponse("the function's answer has no end of its prelude: eight NUL bytes")
        return 200, outbound([("Content-Type", content_type)])
    if len(prelude) > PRELUDE_BYTES:
        raise BadFunctionResponse(f"the prelude of the function's answer has more than {PRELUDE_BYTES} bytes")
    try:
        value = json.loads(prelude)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadFunctionResponse("the prelude of the function's answer is no JSON object")
    headers = outbound(fields_of(value))
    headers.setdefault("Content-Type", "application/octet-stream")
    return status_of(value.get("statusCode", 200)), headers


def _plain_type(payload: bytes, content_type: str) -> str:
    """`application/json` only for what begins like it."""
    begins = payload.lstrip()[:1]
    if content_type != "application/json" or not begins or begins[0] in _JSON_BEGINS:
        return content_type
    try:
        payload.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain; charset=utf-8"


def status_of(value: Any) -> int:
    """A checked `statusCode`."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:4])
    # 1xx is no answer: a client would go on waiting for one.
    if not isinstance(value, int) or isinstance(value, bool) or not 200 <= value <= 599:
        raise BadFunctionResponse("the function's statusCode is not a number from 200 to 599")
    return value


def fields_of(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`headers`, `multiValueHeaders` (format 1.0's, which wins over the single one) and `cookies`."""
    single, several, cookies = (
        value.get("headers") or {},
        value.get("multiValueHeaders") or {},
        value.get("cookies") or [],
    )
    if not isinstance(single, dict) or not isinstance(several, dict) or not isinstance(cookies, list):
        raise BadFunctionResponse("the function's headers are not an object, or its cookies not an array")
    named = {name.lower() for name in several}
    fields = [(name, scalar(content)) for name, content in single.items() if name.lower() not in named]
    for name, contents in several.items():
        if not isinstance(contents, list):
            raise BadFunctionResponse("the function's multiValueHeaders are not arrays")
        fields += [(name, scalar(content)) for content in contents]
    return fields + [("Set-Cookie", scalar(cookie)) for cookie in cookies]


def scalar(content: Any) -> str:
    """A field's value as bytes in latin-1 form."""
    if isinstance(content, bool):
        return "true" if content else "false"
    if not isinstance(content, str | int | float):
        raise BadFunctionResponse("the function's headers hold something other than text, numbers and booleans")
    text = str(content)
    if text.isascii():
        return text
    try:
        return text.encode().decode("latin-1")
    except UnicodeEncodeError:
        raise BadFunctionResponse("the function's headers hold text that cannot be encoded") from None


def _body(value: dict[str, Any]) -> bytes:
    body = value.get("body")
    try:
        if body is None:
            return b""
        if not isinstance(body, str):
            return json.dumps(body).encode()
    except ValueError:
        raise BadFunctionResponse("the function's body is neither text nor valid base64") from None
    return text_body(body, base64_encoded=value.get("isBase64Encoded") is True)


def text_body(body: str, *, base64_encoded: bool) -> bytes:
    try:
        return base64.b64decode(body, validate=True) if base64_encoded else body.encode()
    except (binascii.Error, ValueError):
        raise BadFunctionResponse("the function's body is neither text nor valid base64") from None
