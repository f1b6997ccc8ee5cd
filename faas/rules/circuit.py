"""`circuit`: calls are refused for a while once too many of the last ones failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from faas import checks
from faas.checks import Check
from faas.spec_table import table


@dataclass(frozen=True, slots=True)
class Circuit:
    """Opens where `errors` (a share) of the calls within `window` failed, and these were `least` at least; after `open`
    one call after another tries whether it may close."""

    errors: float = 0.5
    window: timedelta = timedelta(seconds=30)
    least: int = 20
    open: timedelta = timedelta(seconds=10)


_SPAN = checks.duration(timedelta(seconds=1), timedelta(minutes=10))
_KEYS: dict[str, Check] = {
    "errors": checks.number(0.01, 1.0),
    "window": _SPAN,
    "least": checks.integer(1, 10_000),
    "open": _SPAN,
}


def read(where: str, value: Any) -> Circuit:
    """The rule at the key `where`. Raises SpecError."""
    return Circuit(**table(where, value, _KEYS))
