"""What goes wrong with an upstream, one class per cause, and what a client of ours hears of it.

UpstreamError
├── Missing        it has no such thing                       404, as if it were ours
├── Denied         it does not let us, or our login is wrong  403
├── Untrusted      what it answers cannot be used             502
└── Unreachable    it does not answer, or fails               502
    ├── TooSlow    it stopped in the middle                   504
    └── Busy       it asks for patience                       429, with its `retry_after`
"""

from __future__ import annotations

from registry.errors import RegistryError


class UpstreamError(Exception):
    """`str()` of it is for clients: it names the upstream; what that sent stands in it only bounded and quoted."""

    status = 502


class Missing(UpstreamError):
    status = 404


class Denied(UpstreamError):
    status = 403


class Untrusted(UpstreamError):
    pass


class Unreachable(UpstreamError):
    pass


class TooSlow(Unreachable):
    status = 504


class Busy(Unreachable):
    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


def answer_for(error: UpstreamError, unknown: str) -> RegistryError:
    """The spec has no codes for gateways: what could not be had is `unknown`, and the status says why."""
    if isinstance(error, Busy):
        headers = {"Retry-After": str(error.retry_after)}
        return RegistryError("TOOMANYREQUESTS", str(error), headers=headers)
    code = "DENIED" if isinstance(error, Denied) else unknown
    return RegistryError(code, str(error), status=error.status)
