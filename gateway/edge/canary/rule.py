"""`Canary`: a second revision behind an alias, its share of the calls, and when it is taken back. Plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faas.checks import format_duration, parse_duration
from faas.errors import InvalidInput

COOKIE, SUB, HEADER = "cookie", "sub", "header:"
PERCENT_MOST = 100.0
LEAST_MOST = 1_000_000
WINDOW_MOST = 3600.0
STICKY_WORDS = "sticky must be cookie, sub (a JWT's), header:NAME, or empty"
LIMITS_WORDS = "rollback must be errors=5%, latency=1.5x, or both; also least=50 (calls) and window=5m"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]{1,128}")
_NUMBER = re.compile(r"\d{1,7}(\.\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a canary goes: `errors`, so many points of its calls more fail than of the stable revision's; `latency`, the
    time that 99, 90 or 50 % of its calls take in the function is so many times the stable one's. None: not looked at.
    Both over the last `window_seconds`, and from `least` calls of the canary on (for `latency` of each side)."""

    errors: float | None = None
    latency: float | None = None
    least: int = 50
    window_seconds: float = 300.0

    def __str__(self) -> str:
        parts = [] if self.errors is None else [f"errors={self.errors:g}%"]
        parts += [] if self.latency is None else [f"latency={self.latency:g}x"]
        window = format_duration(parse_duration(self.window_seconds))
        return ",".join([*parts, f"least={self.least}", f"window={window}"])


@dataclass(frozen=True, slots=True)
class Canary:
    """Revision `number` has `percent` of an alias's calls. `id` names this pair of revisions: another weight keeps it.

    `ended_at`, Unix seconds: taken back, by `reason`; it has no calls then, whatever its weight was.
    """

    id: str
    number: int
    percent: float
    sticky: str = ""
    override: bool = False
    limits: Limits | None = None
    began_at: float = 0.0
    ended_at: float | None = None
    reason: str = ""

    @property
    def runs(self) -> bool:
        return self.ended_at is None

    @property
    def weights(self) -> dict[str, float]:
        return {f"v{self.number}": self.percent if self.runs else 0.0}


def weight(value: Any) -> tuple[int, float] | None:
    """`{"v7": 10}` → (7, 10.0); None for `{}`: no canary. Raises InvalidInput."""
    words = 'weights must be {"v7": 10}: percent of one other revision, or {} for none'
    if not isinstance(value, Mapping) or len(value) > 1:
        raise InvalidInput(words)
    for name, percent in value.items():
        digits = str(name).removeprefix("v")
        is_number = isinstance(percent, int | float) and not isinstance(percent, bool)
        if not digits.isascii() or not digits.isdecimal() or len(digits) > 9 or not is_number:
            raise InvalidInput(words)
        if not 0 <= percent <= PERCENT_MOST:
            raise InvalidInput(f"the weight of {name} must be 0 to 100 percent")
        return int(digits), float(percent)
    return None


def sticky(value: Any) -> str:
    """Raises InvalidInput."""
    if not isinstance(value, str):
        raise InvalidInput(STICKY_WORDS)
    if value in ("", COOKIE, SUB):
        return value
    if value.lower().startswith(HEADER) and _HEADER_NAME.fullmatch(value[len(HEADER) :]):
        return value.lower()
    raise InvalidInput(STICKY_WORDS)


def limits(value: Any) -> Limits | None:
    """`errors=5%,latency=1.5x,least=50,window=5m` as Limits; None for "": nothing is looked at. Raises InvalidInput."""
    if not isinstance(value, str) or len(value) > 200:
        raise InvalidInput(LIMITS_WORDS)
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        key, _, text = part.partition("=")
        if key in found:
            raise InvalidInput(f"rollback names {key} twice")
        found[key] = _limit(key, text)
    if not found:
        return None
    if not found.keys() & {"errors", "latency"}:
        raise InvalidInput(LIMITS_WORDS)
    return Limits(**{"window_seconds" if key == "window" else key: limit for key, limit in found.items()})


def _limit(key: str, text: str) -> float | int:
    amount = text.removesuffix({"errors": "%", "latency": "x"}.get(key, ""))
    if key == "window":
        try:
            seconds = parse_duration(text).total_seconds()
        except ValueError as error:
            raise InvalidInput(f"rollback: window must be {error}") from None
        if not 10 <= seconds <= WINDOW_MOST:
            raise InvalidInput("rollback: window must be 10s to 1h")
        return seconds
    low, high = {"errors": (0.0, 100.0), "latency": (1.0, 1000.0), "least": (1, LEAST_MOST)}.get(key, (1, 0))
    if low > high or not _NUMBER.fullmatch(amount):
        raise InvalidInput(LIMITS_WORDS)
    number = float(amount)
    if not low <= number <= high or (key == "least" and not number.is_integer()):
        raise InvalidInput(f"rollback: {key} must be {low:g} to {high:g}, not {text}")
    return int(number) if key == "least" else number
