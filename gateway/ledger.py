"""What invocations used, added up in memory as they end and written down each second.

An invocation costs a few additions here: no statement, no lock. What `kill -9` takes is what ended since the last
write, about a second; everything else, and every stop that is none, loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from faas.background import Background
from faas.leases import Report
from faas.protocol import (
    RevisionKey,
)
from faas.state.session import Database
from gateway.month import Month, MonthToDate, Spent
from gateway.store import usage
from gateway.store.usage import DAY, HOUR, Figures, UsageQuery, UsageRow
from gateway.writing import Writing

MEGABYTE = 1_048_576
HOURS_KEPT_DAYS = 45  # then a day is one row
AT_ONCE = 64  # invocations, added up together: in a loop that is cheaper, and nobody looks sooner
KEPT_MONTHS = 25  # beside the one that runs: two years of bills


class Tally:
    """One function's figures of this hour that are not written yet, and the month's totals that they count on."""

    __slots__ = ("figures", "function", "namespace")

    def __init__(self, function: Spent, namespace: Spent) -> None:
        self.figures = Figures()
        self.function = function
        self.namespace = namespace

    def add(self, reports: Sequence[Report]) -> None:
        """The very milliseconds and megabytes of their REPORT lines."""
        figures = self.figures
        duration_us = billed_ms = mb_ms = 0
        for duration_seconds, billed_seconds, memory_bytes, max_memory_bytes, init_seconds, failed in reports:
            billed = round(billed_seconds * 1000)
            billed_ms += billed
            mb_ms += billed * (memory_bytes // MEGABYTE)
            duration_us += round(duration_seconds * 1e6)
            if failed:
                figures.errors += 1
            if init_seconds is not None:
                figures.cold_starts += 1
            if max_memory_bytes > figures.max_memory_bytes:
                figures.max_memory_bytes = max_memory_bytes
        figures.requests += len(reports)
        figures.duration_us += duration_us
        figures.billed_ms += billed_ms
        figures.mb_ms += mb_ms
        for spent in (self.function, self.namespace):
            spent.requests += len(reports)
            spent.mb_ms += mb_ms


def hours_from(now: float) -> int:
    """From this moment (a day's start, Unix seconds) on the ledger knows hours; before it, days."""
    return int(now) // DAY * DAY - HOURS_KEPT_DAYS * DAY


class Ledger:
    """`start`ed once. `settle` has what ended just now told; `clock` gives Unix seconds. `month`: what has been used in
    this one."""

    def __init__(
        self,
        database: Database,
        *,
        settle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.month = MonthToDate(self._bring_up_to_date)
        self._settle = settle
        self._database = database
        self._clock = clock
        self._ended: list[tuple[float, RevisionKey, Sequence[Report]]] = []  # not added up yet
        self._waiting = 0  # of those
        self._hour = self._hour_ends = 0
        self._tallies: dict[tuple[str, str], Tally] = {}  # of this hour, since the last write
        self._unwritten: dict[tuple[str, str, int], UsageRow] = {}
        self._turn = asyncio.Lock()
        self._background = Background()
        self._writing = Writing("usage", self.write, self.tidy)

    async def start(self) -> None:
        self.month.turn(self._clock())
        await self._read_month()
        self._writing.start()

    async def stop(self) -> None:
        """Write what is there. Called again, it writes what has ended since."""
        await self._writing.stop()

    def add(self, key: RevisionKey, reports: Sequence[Report]) -> None:
        """Invocations have ended. They count where and when they did."""
        self._ended.append((self._clock(), key, reports))
        self._waiting += len(reports)
        if self._waiting >= AT_ONCE:
            self._add_up()

    async def write(self) -> None:
        """Everything that has ended is in the database when this returns. Goes on where the caller is cancelled.

        Raises Unavailable; what was to be written is then kept for the next time.
        """
        await self._background.complete(self._write(), "usage")

    async def find(self, query: UsageQuery) -> list[UsageRow]:
        """All of it, up to this moment. Raises Unavailable."""
        await self.write()
        return await self._database.ask(partial(usage.find, query=query))

    # Inside

    def _bring_up_to_date(self) -> None:
        self._settle()
        self._add_up()

    def _add_up(self) -> None:
        ended, self._ended, self._waiting = self._ended, [], 0
        for now, key, reports in ended:
            if not self._hour <= now < self._hour_ends:
                self._begin_hour(now)
            tally = self._tallies.get((key.namespace, key.function))
            if tally is None:
                tally = self._begin(key)
            tally.add(reports)

    def _begin(self, key: RevisionKey) -> Tally:
        namespace, function = key.namespace, key.function
        tally = Tally(self.month.of(namespace, function), self.month.of(namespace))
        self._tallies[namespace, function] = tally
        return tally

    def _begin_hour(self, now: float) -> None:
        """Also where the clock was set back: an hour that was begun once goes on then."""
        self._take_down()
        self._hour = int(now) // HOUR * HOUR
        self._hour_ends = self._hour + HOUR
        self.month.turn(now)

    def _drain(self) -> None:
        self._add_up()
        self._take_down()

    def _take_down(self) -> None:
        tallies, self._tallies = self._tallies, {}
        for (namespace, function), tally in tallies.items():
            row = self._unwritten.get((namespace, function, self._hour))
            if row is None:
                row = UsageRow(namespace, function, self._hour, tally.figures)
                self._unwritten[namespace, function, self._hour] = row
            else:
                row.figures.merge(tally.figures)

    async def _write(self) -> None:
        async with self._turn:
            self._bring_up_to_date()
            if self.month.unread:
                await self._read_month()  # before anything of the new month is written, which would count twice
            self._drain()
            rows, self._unwritten = self._unwritten, {}
            if not rows:
                return
            try:
                await self._database.change(partial(usage.add, rows=list(rows.values())))
            except Exception:
                self._keep(rows)
                raise

    def _keep(self, rows: dict[tuple[str, str, int], UsageRow]) -> None:
        """Not written: back to what is to be, beside what has come meanwhile."""
        for key, row in rows.items():
            if (newer := self._unwritten.get(key)) is not None:
                row.figures.merge(newer.figures)
            self._unwritten[key] = row

    async def _read_month(self) -> None:
        start, end = int(self.month.start), int(self.month.end)
        self.month.load(await self._database.ask(partial(usage.totals, start=start, end=end)))

    async def tidy(self) -> None:
        """Hours become days, and what is older than the oldest bill goes. Raises Unavailable."""
        now = self._clock()
        await self._database.change(partial(usage.roll_up, before=hours_from(now)))
        await self._database.change(partial(usage.drop, before=Month.at(now).before(KEPT_MONTHS).start))
