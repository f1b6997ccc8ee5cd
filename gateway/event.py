"""HTTP requests as Lambda events, and Lambda answers as HTTP responses: payload format 2.0 (function URLs).

The event's shape: `version`, `routeKey`, `rawPath`, `rawQueryString`, `cookies`, `headers`, `queryStringParameters`,
`requestContext`, `body`, `isBase64Encoded`. The answer's: `statusCode`, `headers`, `cookies`, `body`,
`isBase64Encoded`; a value without `statusCode` is the body of a 200 itself.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

from multidict import CIMultiDict

from faas.errors import BadFunctionResponse
from gateway.headers import outbound

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
) -> dict[str, Any]:
    """The event of one request. `path` and `query` as written in its target, without `/function/NAME`;
    `fields` with names in lower case; `account` is who called, or "anonymous"; `now` is Unix time."""
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
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": account,
            "apiId": function,
            "domainName": host,
            "domainPrefix": function,
            "http": {
                "method": method,
                "path": path,
                "protocol": protocol,
                "sourceIp": source_ip,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": _time(int(now)),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if query:
        parameters = _parameters(query)
        if parameters:
            event["queryStringParameters"] = parameters
    if body:
        text = None if "content-encoding" in headers else _text(body, headers.get("content-type", ""))
        event["isBase64Encoded"] = text is None
        event["body"] = base64.b64encode(body).decode() if text is None else text
    return event


def encode(event: Any) -> bytes:
    """An event as the bytes that the function is given."""
    return _ENCODE(event).encode()


@functools.lru_cache(maxsize=4)
def _time(now: int) -> str:
    """`12/Mar/2020:19:03:58 +0000`, in English whatever the locale is."""
    t = time.gmtime(now)
    return f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"


def _parameters(query: str) -> dict[str, str]:
    """Decoded, values of one name joined by commas."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
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


def http_answer(payload: bytes, content_type: str = "application/json") -> tuple[int, CIMultiDict[str], bytes]:
    """A function's payload → (status, checked headers, body). Raises BadFunctionResponse.

    A payload that is not JSON goes out as it is, as text or bytes: runtime clients do post such.
    """
    if b'"statusCode"' not in payload:
        return 200, CIMultiDict({"Content-Type": _plain_type(payload, content_type)}), payload
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return 200, CIMultiDict({"Content-Type": _plain_type(b"?" + payload, content_type)}), payload
    if not isinstance(value, dict) or "statusCode" not in value:
        return 200, CIMultiDict({"Content-Type": content_type}), payload
    headers = outbound(_fields(value))
    headers.setdefault("Content-Type", "application/json")
    return _status(value["statusCode"]), headers, _body(value)


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


def _status(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:4])
    # 1xx is no answer: a client would go on waiting for one.
    if not isinstance(value, int) or isinstance(value, bool) or not 200 <= value <= 599:
        raise BadFunctionResponse("the function's statusCode is not a number from 200 to 599")
    return value


def _fields(value: dict[str, Any]) -> list[tuple[str, str]]:
    """`headers`, `multiValueHeaders` (format 1.0's, which wins over the single one) and `cookies`."""
    single, several, cookies = (
        value.get("headers") or {},
        value.get("multiValueHeaders") or {},
        value.get("cookies") or [],
    )
    if not isinstance(single, dict) or not isinstance(several, dict) or not isinstance(cookies, list):
        raise BadFunctionResponse("the function's headers are not an object, or its cookies not an array")
    named = {name.lower() for name in several}
    fields = [(name, _scalar(content)) for name, content in single.items() if name.lower() not in named]
    for name, contents in several.items():
        if not isinstance(contents, list):
            raise BadFunctionResponse("the function's multiValueHeaders are not arrays")
        fields += [(name, _scalar(content)) for content in contents]
    return fields + [("Set-Cookie", _scalar(cookie)) for cookie in cookies]


def _scalar(content: Any) -> str:
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
        return base64.b64decode(body, validate=True) if value.get("isBase64Encoded") is True else body.encode()
    except (binascii.Error, ValueError):
        raise BadFunctionResponse("the function's body is neither text nor valid base64") from None
