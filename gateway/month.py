"""The calendar month (UTC) that bills and budgets go by, and what has been used since it began, in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from faas.errors import InvalidInput

_WRITTEN = re.compile(r"(2\d{3})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """Written `2030-01`; `start` and `end` are Unix seconds, the end is not part of it."""

    year: int
    number: int

    @classmethod
    def at(cls, now: float) -> Self:
        moment = datetime.fromtimestamp(now, UTC)
        return cls(moment.year, moment.month)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidInput."""
        if (match := _WRITTEN.fullmatch(text)) is None:
            raise InvalidInput(f"{text[:40]!r} is no month", hint="a month is written 2030-01")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.year:04}-{self.number:02}"

    @property
    def start(self) -> int:
        return int(datetime(self.year, self.number, 1, tzinfo=UTC).timestamp())

    @property
    def end(self) -> int:
        return self.before(-1).start

    def before(self, months: int) -> Month:
        """The month so many months earlier."""
        count = self.year * 12 + self.number - 1 - months
        return Month(count // 12, count % 12 + 1)


class Spent:
    """What a function or a namespace has used: requests, and billed milliseconds times megabytes."""

    __slots__ = ("mb_ms", "requests")

    def __init__(self, requests: int = 0, mb_ms: int = 0) -> None:
        self.requests = requests
        self.mb_ms = mb_ms


class MonthToDate:
    """What has been used since the month began, by function and by namespace.

    Its totals begin with what the database holds (`load`), once at the start and again where the month turns:
    `unread` says that this is still to be done. `turn` is cheap while the month is the same. `add_up` is called before
    anybody looks: it adds what has ended.
    """

    def __init__(self, add_up: Callable[[], None] = lambda: None) -> None:
        self._add_up = add_up
        self.start = self.end = 0.0
        self.unread = False
        self._spent: dict[tuple[str, str], Spent] = {}

    def turn(self, now: float) -> None:
        """Begin anew where `now` (Unix seconds) is in another month: a later one, or the clock was set back."""
        if not self.start <= now < self.end:
            month = Month.at(now)
            self.start, self.end = float(month.start), float(month.end)
            self._spent = {}
            self.unread = True

    def load(self, stored: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """Add what was stored of this month: (namespace, function) → (requests, mb_ms)."""
        for (namespace, function), (requests, mb_ms) in stored.items():
            for spent in (self.of(namespace, function), self.of(namespace)):
                spent.requests += requests
                spent.mb_ms += mb_ms
        self.unread = False

    def of(self, namespace: str, function: str = "") -> Spent:
        """The running total of a function; of the whole namespace where none is named. Made where it is missing."""
        spent = self._spent.get((namespace, function))
        if spent is None:
            spent = self._spent[namespace, function] = Spent()
        return spent

    def look(self, namespace: str, function: str = "") -> Spent:
        """As `of`, for those who only read."""
        self._add_up()
        return self._spent.get((namespace, function)) or Spent()
