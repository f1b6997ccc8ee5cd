"""`Rules`: all that is asked of requests in front of one function, or of one route. The keys are the same in both.

Each rule is a frozen value in its own file, with the function that reads it; here they are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from faas import checks
from faas.checks import Check
from faas.rules import auth, circuit, cors, throttle, websocket
from faas.rules.auth import AuthRule
from faas.rules.circuit import Circuit
from faas.rules.cors import Cors
from faas.rules.payload import Payload
from faas.rules.throttle import Throttle
from faas.rules.websocket import WebSocketRule
from faas.spec_table import table

Reader = Callable[[str, Any], Any]  # (dotted key, what was written) → the rule; raises SpecError


@dataclass(frozen=True, slots=True)
class Rules:
    """None, and the defaults: nothing is asked."""

    auth: AuthRule | None = None
    cors: Cors | None = None
    compress: bool = False
    payload: Payload = Payload.V2
    throttle: Throttle | None = None
    circuit: Circuit | None = None
    websocket: WebSocketRule | None = None

    @property
    def none(self) -> bool:
        """Whether nothing is asked at all: such requests may go the shortest way."""
        return self == NO_RULES


NO_RULES = Rules()
TABLES: Mapping[str, Reader] = {  # keys that are tables
    "auth": auth.read,
    "cors": cors.read,
    "throttle": throttle.read,
    "circuit": circuit.read,
    "websocket": websocket.read,
}
VALUES: Mapping[str, Check] = {  # keys with one value
    "compress": checks.boolean,
    "payload": checks.choice(Payload),
}
KEYS: tuple[str, ...] = (*TABLES, *VALUES)


def parse(where: str, data: Mapping[str, Any]) -> Rules:
    """The rules among the keys of `data`, the table at `where` ("" for a function); other keys are not looked at.

    Raises SpecError.
    """
    prefix = f"{where}." if where else ""
    found = {key: read(prefix + key, data[key]) for key, read in TABLES.items() if data.get(key) is not None}
    for key, check in VALUES.items():
        found |= table(where, {key: data[key]}, {key: check}) if key in data else {}
    return Rules(**found)
