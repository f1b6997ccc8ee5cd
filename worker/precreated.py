"""`Precreator`: sandboxes made ahead, all but the command of their first process, for revisions likely to scale.

Those are the revisions that needed a start lately which no stem could serve, and that may have more instances than they
have. A sandbox's environment holds its instance's id: who takes one takes its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from faas.background import Background
from faas.errors import FaasError
from faas.metrics import Metrics
from faas.protocol import Kind, Revision, RevisionKey
from worker.drivers.base import Driver, PreparedImage, Sandbox, SandboxSpec
from worker.janitor import Janitor
from worker.launch import CREATE_SECONDS, Launches, within
from worker.memory import meminfo
from worker.memory.charge import Charge
from worker.memory.ledger import Ledger

log = logging.getLogger("worker.precreated")

KEEP_SECONDS = 600.0  # after a revision's last start that was no stem's
UPKEEP_SECONDS = 15.0
PATIENCE_SECONDS = 0.1  # before one is made, and between looks whether nobody is starting an instance
BACKOFF_SECONDS, BACKOFF_MOST_SECONDS = 15.0, 600.0  # after one that could not be made, or ended by itself
CHARGED_BYTES = 8 * 1024 * 1024  # for the runtime program's first process, measured at 2.5 to 3.6 MB, and its network
TOGETHER = 32  # of all revisions
ENDED = "it ended while it waited"
PATHS = ("cold", "precreated")  # starts that show that a revision needs some


class Scaled(Protocol):
    """What is looked at of a revision's pool."""

    revision: Revision
    desired: int
    retired: bool


@dataclass(frozen=True, slots=True)
class Need:
    """What the decision looks at. Seconds of one monotonic clock; `not_before` is the end of a pause after failures."""

    needed_at: float
    not_before: float
    desired: int
    scale_max: int
    retired: bool


def lasts(need: Need, now: float) -> bool:
    """Whether sandboxes that are there stay. Pure."""
    return not need.retired and now - need.needed_at <= KEEP_SECONDS


def wanted(need: Need, most: int, now: float) -> int:
    """Up to how many are made. Pure."""
    likely = lasts(need, now) and need.desired < need.scale_max and now >= need.not_before
    return most if likely else 0


@dataclass(eq=False)
class Made:
    sandbox: Sandbox
    spec: SandboxSpec
    image: PreparedImage
    charge: Charge


@dataclass(eq=False)
class Shelf:
    """The ready ones of one revision, the oldest first."""

    pool: Scaled
    needed_at: float
    not_before: float = 0.0
    failures: int = 0  # in a row
    ready: deque[Made] = field(default_factory=deque)

    @property
    def need(self) -> Need:
        pool = self.pool
        return Need(self.needed_at, self.not_before, pool.desired, pool.revision.spec.scale.limit, pool.retired)


class Precreator:
    """At most `most` per revision; with 0, or before `open`, none."""

    def __init__(
        self, most: int, driver: Driver, launches: Launches, janitor: Janitor, ledger: Ledger, metrics: Metrics
    ) -> None:
        self._most = most
        self._driver = driver
        self._launches = launches
        self._janitor = janitor
        self._ledger = ledger
        self._shelves: dict[RevisionKey, Shelf] = {}
        self._work = Background()
        self._ends = Background()
        self._needed = asyncio.Event()
        metrics.precreated.set_function(lambda: self.ready)

    @property
    def ready(self) -> int:
        return sum(len(shelf.ready) for shelf in self._shelves.values())

    def open(self) -> None:
        if self._most:
            self._work.start(self._keep_up(), "sandboxes made ahead")

    async def close(self, seconds: float) -> None:
        """End all, within this time."""
        await self._work.cancel()
        for key in list(self._shelves):
            self.forget(key)
        await self._ends.finish(seconds)

    # What pools say

    def started(self, pool: Scaled, path: str) -> None:
        """An instance of this revision has started on this path."""
        if self._most and path in PATHS:
            shelf = self._shelves.setdefault(pool.revision.key, Shelf(pool, 0.0))
            shelf.pool, shelf.needed_at = pool, time.monotonic()
            self._needed.set()

    def take(self, revision: Revision) -> str | None:
        """The id of a ready one, which is the caller's: `Driver.create` gives the sandbox. None where there is none."""
        shelf = self._shelves.get(revision.key)
        while shelf is not None and shelf.ready:
            made = shelf.ready.popleft()
            if made.sandbox.exited.done():
                self._failed(shelf, ENDED)
            elif self._is_current(made, revision):
                made.charge.release()
                return made.spec.id
            self._end(made.spec.id, made.charge)
        return None

    def outdated(self, revision: Revision) -> None:
        """A new one would be another: those that are ready go, and new ones come."""
        if (shelf := self._shelves.get(revision.key)) is not None:
            self._clear(shelf)
            self._needed.set()

    def forget(self, key: RevisionKey) -> None:
        """The revision is gone."""
        if (shelf := self._shelves.pop(key, None)) is not None:
            self._clear(shelf)

    # Making

    async def _keep_up(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UPKEEP_SECONDS):
                    await self._needed.wait()
            self._needed.clear()
            self.shrink(time.monotonic(), short=meminfo.is_short())
            try:
                await self._make_missing()
            except Exception:
                log.exception("no sandbox could be made ahead")

    async def _make_missing(self) -> None:
        """One after the other, and only while nobody starts an instance."""
        while True:
            await asyncio.sleep(PATIENCE_SECONDS)
            if self._launches.turns.under_way:
                continue
            shelf = self._next(time.monotonic())
            if shelf is None or meminfo.is_short():
                return
            await self._make(shelf)

    def _next(self, now: float) -> Shelf | None:
        if self.ready >= TOGETHER:
            return None
        missing = (shelf for shelf in self._shelves.values() if len(shelf.ready) < wanted(shelf.need, self._most, now))
        return next(missing, None)

    async def _make(self, shelf: Shelf) -> None:
        revision, began = shelf.pool.revision, time.monotonic()
        charge = self._ledger.try_charge(Kind.STEM, CHARGED_BYTES)
        if charge is None:
            shelf.not_before = began + BACKOFF_SECONDS
            return
        instance_id = secrets.token_hex(8)
        self._janitor.know(instance_id)
        try:
            image = await self._launches.image(revision.image)
            spec = self._launches.spec(revision, image, instance_id)
            async with within(CREATE_SECONDS, "it could not be created in time"):
                sandbox = await self._driver.create(spec, ahead=True)
        except BaseException as error:
            self._end(instance_id, charge)
            if not isinstance(error, FaasError | OSError):
                raise
            self._failed(shelf, str(error))
            return
        made = Made(sandbox, spec, image, charge)
        shelf.failures = 0
        shelf.ready.append(made)
        charge.may_be_evicted(lambda: self._drop(shelf, made), time.monotonic() - began)
        charge.rest()
        sandbox.exited.add_done_callback(lambda _: self._ended(shelf, made))
        if self._shelves.get(revision.key) is not shelf:  # it went meanwhile
            self._clear(shelf)

    def _failed(self, shelf: Shelf, why: str) -> None:
        pause = min(BACKOFF_MOST_SECONDS, BACKOFF_SECONDS * 4 ** min(shelf.failures, 10))
        shelf.failures += 1
        shelf.not_before = time.monotonic() + pause
        log.debug("%s: nothing was made ahead: %s", shelf.pool.revision.key, why)

    # Their end

    def shrink(self, now: float, *, short: bool) -> None:
        """Give up what nobody needs, or everything where memory is short."""
        for key, shelf in list(self._shelves.items()):
            if not lasts(shelf.need, now):
                self.forget(key)
            elif short:
                self._clear(shelf)

    def _clear(self, shelf: Shelf) -> None:
        for made in list(shelf.ready):
            self._drop(shelf, made)

    def _ended(self, shelf: Shelf, made: Made) -> None:
        if made in shelf.ready:
            self._failed(shelf, ENDED)
            self._drop(shelf, made)

    def _drop(self, shelf: Shelf, made: Made) -> None:
        if made in shelf.ready:
            shelf.ready.remove(made)
            self._end(made.spec.id, made.charge)

    def _end(self, instance_id: str, charge: Charge) -> None:
        charge.leave()
        self._ends.start(self._remove(instance_id, charge), f"end of {instance_id}")

    async def _remove(self, instance_id: str, charge: Charge) -> None:
        with charge:
            await self._janitor.discard(instance_id)

    def _is_current(self, made: Made, revision: Revision) -> bool:
        """Whether a new one would be the same: the day in the name of its log stream counts too, and each secret."""
        try:
            return made.spec == self._launches.spec(revision, made.image, made.spec.id)
        except FaasError:
            return False
