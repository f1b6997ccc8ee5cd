"""What the keys of usage plans have used in this day, week or month: counted in memory, exactly, and what is unwritten.

Periods are calendar ones, UTC; a week begins on Monday (ISO 8601). Times are Unix seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

DAY = 86_400


class Period(enum.StrEnum):
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True, slots=True)
class Span:
    """One period: `end` is not part of it."""

    start: int
    end: int

    def has(self, now: float) -> bool:
        return self.start <= now < self.end


def span_at(period: Period, now: float) -> Span:
    """The period that `now` is in."""
    today = datetime.fromtimestamp(now // DAY * DAY, UTC)
    if period is Period.DAY:
        start, end = today, today + timedelta(days=1)
    elif period is Period.WEEK:
        start = today - timedelta(days=today.weekday())
        end = start + timedelta(days=7)
    else:
        start = today.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    return Span(int(start.timestamp()), int(end.timestamp()))


@dataclass(frozen=True, slots=True)
class Where:
    """Whose requests one count is of: a key's, under a plan, in the period that begins at `start`."""

    namespace: str
    plan: str
    key: str
    period: Period
    start: int


class Count:
    """`unwritten`: how much of `used` is not in the database yet; below zero where units were given back."""

    __slots__ = ("unwritten", "used")

    def __init__(self, used: int = 0) -> None:
        self.used = used
        self.unwritten = 0

    def add(self, units: int) -> None:
        self.used += units
        self.unwritten += units


class Quotas:
    """All counts of the periods that run, and of those before whose units are not written yet."""

    def __init__(self) -> None:
        self._counts: dict[Where, Count] = {}
        self._spans: dict[Period, Span] = {}

    def load(self, stored: Iterable[tuple[Where, int]]) -> None:
        """What the database holds of the periods that run."""
        self._counts = {where: Count(used) for where, used in stored}

    def span(self, period: Period, now: float) -> Span:
        found = self._spans.get(period)
        if found is None or not found.has(now):
            found = self._spans[period] = span_at(period, now)
        return found

    def of(self, where: Where) -> Count:
        """Made where it is missing."""
        count = self._counts.get(where)
        if count is None:
            count = self._counts[where] = Count()
        return count

    def used(self, where: Where) -> int:
        """As `of`, for those who only read."""
        count = self._counts.get(where)
        return 0 if count is None else count.used

    def keys(self, namespace: str, plan: str, period: Period, start: int) -> dict[str, int]:
        """Key → what it has used in that period."""
        return {
            where.key: count.used
            for where, count in self._counts.items()
            if (where.namespace, where.plan, where.period, where.start) == (namespace, plan, period, start)
        }

    def drain(self) -> list[tuple[Where, int]]:
        """What is to be added in the database. It counts as written; `keep` takes that back."""
        drained = [(where, count.unwritten) for where, count in self._counts.items() if count.unwritten]
        for where, _ in drained:
            self._counts[where].unwritten = 0
        return drained

    def keep(self, drained: Iterable[tuple[Where, int]]) -> None:
        """It could not be written: the next `drain` has it again."""
        for where, units in drained:
            self.of(where).unwritten += units

    def forget(self, namespace: str, plan: str) -> None:
        """The plan is gone, with all that was used of it."""
        self._counts = {w: c for w, c in self._counts.items() if (w.namespace, w.plan) != (namespace, plan)}

    def tidy(self, now: float) -> None:
        """Drop what is written, and older than the period before the one that runs: calls may end late, and clocks be
        set back."""
        oldest = {period: span_at(period, self.span(period, now).start - 1).start for period in Period}
        for where in [where for where, count in self._counts.items() if not count.unwritten]:
            if where.start < oldest[where.period]:
                del self._counts[where]
