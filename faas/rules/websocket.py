"""`[websocket]`: what is asked of WebSocket connections in front of a function or a WebSocket API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from faas import checks
from faas.checks import Check
from faas.spec_table import table

ORIGINS = 64
MESSAGE_MOST = 1_048_576
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+|null")


@dataclass(frozen=True, slots=True)
class WebSocketRule:
    """`origins`: whose pages may connect, compared letter by letter; () asks nothing. A client that names no origin is
    no browser's page, and comes in.

    `idle`: without a byte (of a WebSocket API: a message or a client's ping) for so long a connection is closed;
    `lifetime`: every one is after that. The defaults are Amazon API Gateway's. `max_message`, `max_frame`: bytes of
    payload from the client; 0: what is usual where the rule stands (an API's own limits, none in front of a function).
    """

    origins: tuple[str, ...] = ()
    idle: timedelta = timedelta(minutes=10)
    lifetime: timedelta = timedelta(hours=2)
    max_message: int = 0
    max_frame: int = 0

    def admits(self, origin: str | None) -> bool:
        return not self.origins or origin is None or origin.lower() in self.origins


USUAL = WebSocketRule()


def _origins(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > ORIGINS:
        raise ValueError(f"a list of at most {ORIGINS} origins")
    for item in value:
        if not isinstance(item, str) or len(item) > 256 or not _ORIGIN.fullmatch(item.lower()):
            raise ValueError('a list of origins such as "https://example.org", without a path')
    return tuple(item.lower() for item in value)


_CHECKS: Mapping[str, Check] = {
    "origins": _origins,
    "idle": checks.duration(timedelta(seconds=1), timedelta(hours=24)),
    "lifetime": checks.duration(timedelta(seconds=1), timedelta(hours=24)),
    "max_message": checks.integer(0, MESSAGE_MOST),
    "max_frame": checks.integer(0, MESSAGE_MOST),
}


def read(where: str, value: Any) -> WebSocketRule:
    """The rule in the table at `where`. Raises SpecError."""
    return WebSocketRule(**table(where, value, _CHECKS))
