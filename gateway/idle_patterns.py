"""What is learned of the functions whose `scale.idle` is "learn": in memory, and in the database for the next start.

A pattern is its function's, not a revision's: a deploy forgets nothing. It is learned from the calls of the revision
that is live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from faas.errors import FaasError
from faas.metrics import Metrics
from faas.protocol import RevisionKey
from faas.state.session import Database
from gateway.collector import Load
from gateway.keepalive import Pattern, Windows, windows
from gateway.router import function_label
from gateway.store import idle_patterns
from gateway.store.idle_patterns import PatternRow

log = logging.getLogger("faas.patterns")

WRITE_SECONDS = 60.0


@dataclass(slots=True)
class _Learned:
    """One function. `load`: of its live revision, while that one learns; `ended`: the last call's end, on the monotonic
    clock, as the database had it; `written`: what is in the database; `text`: the pattern as it is written there."""

    pattern: Pattern = field(default_factory=Pattern)
    load: Load | None = None
    ended: float | None = None
    written: PatternRow | None = None
    text: str = ""
    text_seen: int = -1  # of the pattern that `text` is of
    windows: Windows | None = None
    seen: int = -1  # of the pattern that `windows` are of
    standard: float = 0.0


class IdlePatterns:
    """`clock` gives seconds, monotonic: the scaler's; `wall` Unix seconds."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._learned: dict[tuple[str, str], _Learned] = {}

    def went_live(self, key: RevisionKey, load: Load, before: Load | None, *, learns: bool) -> None:
        """A revision with this load is live instead of the one with the load `before` (None: after a start)."""
        if before is not None:
            before.learn = None
            load.ended = None if before.in_flight else before.ended
        learned = self._learned.get((key.namespace, key.function))
        if not learns:
            if learned is not None:
                learned.load = None
            return
        if learned is None:
            learned = self._learned[key.namespace, key.function] = _Learned()
        if before is None:
            load.ended = learned.ended
        learned.load = load
        load.learn = learned.pattern.record

    def windows(self, key: RevisionKey, standard: float) -> Windows | None:
        """What holds for the function now, with this fixed window; None where nothing is being learned of it."""
        learned = self._learned.get((key.namespace, key.function))
        if learned is None or learned.load is None:
            return None
        if learned.windows is None or (learned.seen, learned.standard) != (learned.pattern.seen, standard):
            learned.windows = windows(learned.pattern, standard)
            learned.seen, learned.standard = learned.pattern.seen, standard
        return learned.windows

    def shown(self, key: RevisionKey, standard: float) -> dict[str, Any] | None:
        """What `faas describe` tells, in seconds; None where nothing is being learned."""
        found = self.windows(key, standard)
        if found is None:
            return None
        seen = self._learned[key.namespace, key.function].pattern.seen
        return {
            "linger_seconds": found.linger,
            "prewarm_seconds": round(found.prewarm, 1),
            "keep_seconds": round(found.keep, 1),
            "reason": found.reason,
            "seen": seen,
        }

    def prewarmed(self, key: RevisionKey, *, used: bool) -> None:
        """What was started for a call that was expected has served one, or has gone without."""
        label = function_label(key.namespace, key.function)
        self._metrics.prewarmed.labels(label, "used" if used else "unused").inc()

    def forget(self, namespace: str, function: str) -> None:
        self._learned.pop((namespace, function), None)

    # For the database

    def take(self, rows: Iterable[PatternRow]) -> None:
        """What an earlier run of the server wrote."""
        for row in rows:
            try:
                pattern = Pattern.load(row.pattern)
            except ValueError as error:
                log.warning("%s: %s", function_label(row.namespace, row.function), error)
                continue
            ago = None if row.ended_at is None else self._wall() - row.ended_at
            ended = self._clock() - ago if ago is not None and ago >= 0 else None  # the wall clock may be set back
            self._learned[row.namespace, row.function] = _Learned(
                pattern, ended=ended, written=row, text=row.pattern, text_seen=pattern.seen
            )

    def changed(self) -> list[PatternRow]:
        """What is not written yet."""
        rows = []
        for (namespace, function), learned in self._learned.items():
            if (load := learned.load) is None:
                continue
            ended = None if load.in_flight or load.ended is None else self._wall() - (self._clock() - load.ended)
            if learned.text_seen != learned.pattern.seen:
                learned.text, learned.text_seen = learned.pattern.dump(), learned.pattern.seen
            row = PatternRow(namespace, function, learned.text, ended if ended is None else round(ended))
            if row != learned.written:
                rows.append(row)
        return rows

    def wrote(self, rows: Iterable[PatternRow]) -> None:
        for row in rows:
            if (learned := self._learned.get((row.namespace, row.function))) is not None:
                learned.written = row


class PatternKeeper:
    """Reads the patterns at the start, and writes what has changed each minute and at the stop. What `kill -9` takes is
    the last minute."""

    def __init__(self, database: Database, patterns: IdlePatterns) -> None:
        self._database = database
        self._patterns = patterns
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._patterns.take(await self._database.ask(idle_patterns.every))
        self._loop = asyncio.create_task(self._run(), name="idle patterns")

    async def stop(self) -> None:
        self._closing.set()
        if self._loop is not None:
            await self._loop
            self._loop = None

    async def write(self) -> None:
        """Raises Unavailable; what was to be written is then written the next time."""
        if rows := self._patterns.changed():
            await self._database.change(partial(idle_patterns.put, rows=rows))
            self._patterns.wrote(rows)

    async def _run(self) -> None:
        closing = False
        while not closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._closing.wait()
            closing = self._closing.is_set()  # before the last write, not after it
            try:
                await self.write()
            except FaasError as error:
                log.error("what was learned of calls cannot be written yet, and is kept: %s", error.message)
            except Exception:
                log.exception("what was learned of calls cannot be written")
