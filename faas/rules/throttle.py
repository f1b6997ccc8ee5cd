"""`throttle`: how many requests may come in, by a token bucket: `rate` tokens a second, `burst` of them kept at most.

Rate and burst are Amazon API Gateway's (REST API throttling).
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

from faas import checks
from faas.checks import Check
from faas.errors import SpecError
from faas.spec_table import table

RATE_LEAST, RATE_MOST = 0.001, 100_000.0  # requests a second: from four in an hour on
BURST_MOST = 100_000


class Per(enum.StrEnum):
    """Who has a bucket: all callers together, each caller by their credentials, or each client address."""

    ALL = "all"
    KEY = "key"
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Throttle:
    """`rate`: requests a second."""

    rate: float
    burst: int
    per: Per = Per.ALL


RATE = checks.number(RATE_LEAST, RATE_MOST)
BURST = checks.integer(1, BURST_MOST)
_KEYS: dict[str, Check] = {"rate": RATE, "burst": BURST, "per": checks.choice(Per)}


def read(where: str, value: Any) -> Throttle:
    """The rule at the key `where`. Raises SpecError."""
    values = table(where, value, _KEYS)
    if "rate" not in values:
        raise SpecError(f"{where} needs rate", key=where, hint=f"{where} = {{ rate = 100, burst = 200 }}")
    return Throttle(**{"burst": default_burst(values["rate"]), **values})


def default_burst(rate: float) -> int:
    """One second's requests."""
    return max(1, math.ceil(rate))
