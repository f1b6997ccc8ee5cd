"""What usage would cost: the price list, and a month's bill by it. A comparison only: the machine is its owner's.

Money is `Decimal`, memory times billed time a whole number (MB times ms): nothing is lost to rounding.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from faas.errors import InvalidInput

MB_MS = 1024 * 1000  # in one GB-second: a GB has 1,024 MB, as in Lambda's prices
MOST_PRICE, MOST_FREE = Decimal(1_000_000), 10**15
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True)
class Share:
    """One line of a bill: how much was used, how much of that is free, what the rest costs."""

    used: Decimal
    free: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Bill:
    currency: str
    requests: Share
    gb_seconds: Share

    @property
    def cost(self) -> Decimal:
        return self.requests.cost + self.gb_seconds.cost


@dataclass(frozen=True, slots=True)
class Prices:
    """The defaults are AWS Lambda's public ones for x86, with its monthly free allowance."""

    currency: str = "USD"
    per_million_requests: Decimal = Decimal("0.20")
    per_gb_second: Decimal = Decimal("0.0000166667")
    free_requests: int = 1_000_000  # a month
    free_gb_seconds: int = 400_000

    @property
    def per_request(self) -> Decimal:
        return self.per_million_requests / 1_000_000

    def cost(self, requests: int, mb_ms: int) -> Decimal:
        """By the list, nothing free."""
        return requests * self.per_request + gb_seconds(mb_ms) * self.per_gb_second

    def bill(self, requests: int, mb_ms: int) -> Bill:
        """A whole month of all namespaces: the allowance belongs to all of them together."""
        return Bill(
            self.currency,
            _share(Decimal(requests), self.free_requests, self.per_request),
            _share(gb_seconds(mb_ms), self.free_gb_seconds, self.per_gb_second),
        )


def gb_seconds(mb_ms: int) -> Decimal:
    return Decimal(mb_ms) / MB_MS


def _share(used: Decimal, allowance: int, price: Decimal) -> Share:
    free = min(used, Decimal(allowance))
    return Share(used, free, (used - free) * price)


def load(path: Path) -> Prices:
    """The price list in `path` (TOML, the fields of `Prices`); what it leaves out, or no file, is the default.

    Blocking. Raises InvalidInput that names file and key.
    """
    try:
        written = tomllib.loads(path.read_text(), parse_float=Decimal)
    except FileNotFoundError:
        return Prices()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}") from None
    known = [field.name for field in fields(Prices)]
    for key, value in written.items():
        if key not in known:
            raise InvalidInput(f"{path}: unknown key {key}", hint="known: " + ", ".join(known))
        try:
            written[key] = _checked(key, value)
        except ValueError as error:
            raise InvalidInput(f"{path}: {key} must be {error}, not {value!s}") from None
    return Prices(**written)


def _checked(key: str, value: Any) -> Any:
    """Raises ValueError with what is allowed."""
    if key == "currency":
        if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
            raise ValueError("three capital letters")
        return value
    if key.startswith("free_"):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_FREE:
            raise ValueError(f"a whole number from 0 to {MOST_FREE}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError("a number")
    price = Decimal(value)
    if not price.is_finite() or not 0 <= price <= MOST_PRICE:
        raise ValueError(f"a number from 0 to {MOST_PRICE}")
    return price
