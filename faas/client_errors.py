"""What a server's error answers become: the class of `faas.errors` that it was there, with a `Refusal` as cause."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping

from faas.errors import (
    Conflict,
    FaasError,
    Forbidden,
    FunctionError,
    InitFailed,
    InvalidInput,
    NotFound,
    NotOffered,
    PayloadTooLarge,
    Throttled,
    TimedOut,
    Unauthenticated,
    Unavailable,
)

ERROR_BYTES = 1_048_576  # of an error answer that are read
LOG_HEADER = "X-Faas-Log-Result"  # base64 of an invocation's last 4 KB


class Unreachable(Unavailable):
    """The server cannot be reached."""

    code = "Unreachable"


class NoAnswer(FaasError):
    """The server did not answer in time."""

    code = "NoAnswer"


class Refusal(Exception):
    """What the server answered, beyond code and message: the cause of the error that a `Client` raises.

    `function` is the name that the call was about, or ""; `log_tail` the last lines of an instance that did not start.
    """

    def __init__(self, status: int, request_id: str, function: str = "", log_tail: str = "") -> None:
        super().__init__(f"HTTP {status}, request id {request_id or 'unknown'}")
        self.status = status
        self.request_id = request_id
        self.function = function
        self.log_tail = log_tail


def _tree(root: type[FaasError]) -> Iterator[type[FaasError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _tree(kind)


_BY_STATUS: dict[int, type[FaasError]] = {
    400: InvalidInput, 401: Unauthenticated, 403: Forbidden, 404: NotFound, 409: Conflict, 413: PayloadTooLarge,
    429: Throttled, 501: NotOffered, 502: FunctionError, 503: Unavailable, 504: TimedOut,
}  # fmt: skip


def error_of(status: int, headers: Mapping[str, str], body: bytes, url: str, function: str) -> FaasError:
    """The exception for an error answer, ready to be raised, with its `Refusal` as cause."""
    try:
        written = json.loads(body)["error"]
        code, message = str(written["code"]), str(written["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        error = _BY_STATUS.get(status, FaasError)(f"{url} answered {status}", hint="is this the API's address?")
        error.__cause__ = Refusal(status, headers.get("X-Request-Id", ""), function)
        return error
    kind = next((kind for kind in _tree(FaasError) if kind.code == code), None) or _BY_STATUS.get(status, FaasError)
    hint = str(written.get("hint") or "")
    tail = str(written.get("log_tail") or "") or decoded(headers.get(LOG_HEADER, ""))
    if issubclass(kind, FunctionError):
        kind_of_error = headers.get("X-Error-Type")
        error = (
            kind(message, error_type=kind_of_error, hint=hint, log_tail=tail)
            if issubclass(kind, InitFailed)
            else kind(message, error_type=kind_of_error, hint=hint)
        )
    elif issubclass(kind, Throttled):
        retry_after = headers.get("Retry-After", "1")
        error = kind(
            message,
            reason=headers.get("Reason", ""),
            retry_after=int(retry_after) if retry_after.isdigit() else 1,
            hint=hint,
        )
    else:
        error = kind(message, hint=hint)
    request_id = str(written.get("request_id") or headers.get("X-Request-Id", ""))
    error.__cause__ = Refusal(status, request_id, function, tail)
    return error


def decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode(errors="replace")
    except (binascii.Error, ValueError):
        return ""
