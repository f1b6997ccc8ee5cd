"""`Facts`: one look at everything that can go wrong, from what is counted or written down anyway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from faas.checkup.disk import room
from faas.dev import is_dev
from faas.errors import FaasError
from faas.state.session import Database
from gateway.backup import Outcome
from gateway.counters import Tally
from gateway.notify import subjects, window
from gateway.notify.subjects import Kind, Observation
from gateway.notify.window import Calls, Window
from gateway.spending import Spending
from gateway.store import notifications

log = logging.getLogger("faas.notify")

LETTERS_SECONDS = 900.0  # a dead letter is news for so long
BLOBS_SECONDS = 60.0  # between looks: all rows of blobs are read for one
Seen = Mapping[Kind, list[Observation]]


class Facts:
    """`certificates`, `damaged` and `backup` are ports of what the composition root has: certificates' ends by name,
    what the registry has found damaged, how the last backup ended. Without them nothing is known of those."""

    def __init__(self, database: Database, tallies: Callable[[], dict[str, Tally]], spending: Spending) -> None:
        self._database = database
        self._tallies = tallies
        self._spending = spending
        self._window = Window()
        self._blobs: tuple[float, list[str]] | None = None
        self._failing: set[Kind] = set()
        self.data: Path | None = None
        self.certificates: Callable[[], Mapping[str, float]] | None = None
        self.damaged: Callable[[], Awaitable[list[str]]] | None = None
        self.backup: Callable[[], Outcome | None] | None = None

    async def look(self, kinds: Collection[Kind], now: float) -> Seen:
        """What is wrong, of these kinds. A kind that is missing in the answer could not be looked at."""
        looks: dict[Kind, Callable[[float], Awaitable[list[Observation] | None]]] = {
            Kind.FUNCTION: self._functions,
            Kind.SCHEDULE: self._schedules,
            Kind.DEAD_LETTER: self._dead_letters,
            Kind.BUDGET: self._budgets,
            Kind.DISK: self._disk,
            Kind.CERTIFICATE: self._certificates,
            Kind.BLOB: self._damaged,
            Kind.BACKUP: self._backup,
        }
        if Kind.FUNCTION not in kinds:
            self._window = Window()
        found = {}
        for kind in kinds:
            try:
                seen = await looks[kind](now)
            except (FaasError, OSError) as error:
                if kind not in self._failing:
                    log.warning("nothing is known of %s now: %s", kind.value, error)
                self._failing.add(kind)
                continue
            self._failing.discard(kind)
            if seen is not None:
                found[kind] = seen
        return found

    async def _functions(self, now: float) -> list[Observation]:
        tallies = self._tallies().items()
        self._window.add({name: Calls(one.invocations, one.errors) for name, one in tallies if not is_dev(name)}, now)
        return subjects.functions(self._window.failing(), int(window.SECONDS / 60))

    async def _schedules(self, now: float) -> list[Observation]:
        return subjects.schedules(await self._database.ask(notifications.schedule_ends))

    async def _dead_letters(self, now: float) -> list[Observation]:
        letters = await self._database.ask(lambda tx: notifications.new_letters(tx, now - LETTERS_SECONDS))
        return subjects.dead_letters(letters, int(LETTERS_SECONDS / 60))

    async def _budgets(self, now: float) -> list[Observation]:
        every = self._spending.every()
        return subjects.budgets((one, one.limit.ratio(self._spending.spent(one))) for one in every)

    async def _disk(self, now: float) -> list[Observation] | None:
        if (data := self.data) is None:
            return None
        return subjects.disk(await asyncio.to_thread(lambda: list(room("disk", data))))

    async def _certificates(self, now: float) -> list[Observation] | None:
        return None if self.certificates is None else subjects.certificates(self.certificates(), now)

    async def _damaged(self, now: float) -> list[Observation] | None:
        if self.damaged is None:
            return None
        if self._blobs is None or not 0 <= now - self._blobs[0] < BLOBS_SECONDS:
            self._blobs = now, await self.damaged()
        return subjects.blobs(self._blobs[1])

    async def _backup(self, now: float) -> list[Observation] | None:
        outcome = self.backup() if self.backup is not None else None
        return None if outcome is None else subjects.backup(outcome.failure)
