"""Acts on the autoscaler's decisions: once a second for every revision in use, and at once when an invocation finds
no free slot (the poke: a cold start begins here).

It only says how many instances there should be (`Worker.scale`, idempotent); the worker makes it so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from faas.background import Background
from faas.protocol import Revision, RevisionKey, RevisionStats, Worker
from gateway.autoscaler import Panic, decide
from gateway.burst import Bucket, filled, take
from gateway.collector import Collector, Load, Observed
from gateway.idle_patterns import IdlePatterns

log = logging.getLogger("faas.scaler")

TICK_SECONDS = 1.0
AT_ONCE = 50  # revisions that are decided for before others have a turn
BURST = 1000


@dataclass(slots=True)
class _Tracked:
    """A revision in use. `told`: the last number said to the worker; `fading`: `live` left it, so that its instances
    go when they are idle, unless somebody calls it again by its number."""

    revision: Revision
    load: Load
    told: int | None = None
    fading: bool = False
    panic: Panic | None = None
    prewarmed: bool = False  # an instance was asked for that an expected call is to use


class Scaler:
    """Tick and poke. One function starts `burst` instances at once, and a tenth of that each second. `clock` gives
    seconds, monotonic."""

    def __init__(
        self,
        worker: Worker,
        collector: Collector,
        patterns: IdlePatterns,
        *,
        burst: int = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._buckets: dict[tuple[str, str], Bucket] = {}  # of functions that have started something lately
        self._worker = worker
        self._collector = collector
        self._patterns = patterns
        self._clock = clock
        self._tracked: dict[RevisionKey, _Tracked] = {}
        self._live: dict[tuple[str, str], RevisionKey] = {}
        self._background = Background()

    async def start(self) -> None:
        self._background.start(self._run(), "scaler")

    async def stop(self) -> None:
        await self._background.cancel()

    async def poke(self, revision: Revision) -> None:
        """An invocation of `revision`, counted in the collector already, is about to ask for a slot: see to it that
        there is one, or one is coming. Costs a look at the worker's numbers where there is."""
        tracked = self._track(revision)
        tracked.fading = False
        stats = self._worker.stats(revision.key)
        if tracked.prewarmed:
            self._prewarm_ended(tracked, stats, used=True)
        if stats.instances * revision.spec.concurrency > stats.executing + stats.waiting:
            return
        await self._act(tracked, stats, self._clock(), only_up=True)

    def used(self, revision: Revision) -> None:
        """The poke of an invocation that had a free slot at once: nothing needs to be looked at or started."""
        tracked = self._tracked.get(revision.key)
        if tracked is None or tracked.revision is not revision:
            tracked = self._track(revision)
        tracked.fading = False
        if tracked.prewarmed:
            self._prewarm_ended(tracked, self._worker.stats(revision.key), used=True)

    async def set_now(self, revision: Revision, instances: int) -> None:
        """`faas scale`: this many now (idle ones above it go at once); the autoscaler goes on from there."""
        tracked = self._track(revision)
        tracked.load.seed(instances * revision.spec.concurrency, self._clock())
        tracked.panic = None
        tracked.told = instances
        await self._worker.scale(revision, instances)

    async def revision_live(self, revision: Revision) -> None:
        """`live` names `revision` from now on: `min` holds for it, what its check started stays for `idle`; the
        instances of the one before end when they are idle. Said again, it only refreshes what is known."""
        key, function = revision.key, (revision.key.namespace, revision.key.function)
        before = self._live.get(function)
        self._live[function] = key
        tracked = self._track(revision)
        tracked.fading = False
        now = self._clock()
        if before != key:
            tracked.load.seed(self._worker.stats(key).instances * revision.spec.concurrency, now)
            replaced = self._tracked.get(before) if before is not None else None
            last = replaced.load if replaced is not None else None
            self._patterns.went_live(key, tracked.load, last, learns=revision.spec.scale.learns)
        await self._step(tracked, now)
        if before is not None and before != key and (old := self._tracked.get(before)) is not None:
            old.fading = True
            await self._step(old, now)

    async def retire(self, key: RevisionKey) -> None:
        """The revision is gone (deleted, or too old to keep): no new instances, idle ones end now, busy ones later."""
        self._tracked.pop(key, None)
        self._collector.forget(key)
        if self._live.get((key.namespace, key.function)) == key:
            del self._live[key.namespace, key.function]
            self._patterns.forget(key.namespace, key.function)
        await self._worker.retire(key)

    async def tick(self, now: float) -> None:
        """Decide for every revision in use."""
        for number, tracked in enumerate(list(self._tracked.values()), 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)  # calls go on meanwhile
            if self._tracked.get(tracked.revision.key) is not tracked:
                continue  # it was retired meanwhile
            try:
                tracked.load.sample(now)
                await self._step(tracked, now)
            except Exception:
                log.exception("scaling failed", extra={"function": str(tracked.revision.key)})
        for function, bucket in list(self._buckets.items()):
            if filled(bucket, now, self._burst) >= self._burst:
                del self._buckets[function]

    def in_flight(self) -> dict[RevisionKey, int]:
        """Invocations of the revisions in use, those that wait included."""
        return {key: tracked.load.in_flight for key, tracked in self._tracked.items()}

    @property
    def in_use(self) -> list[Revision]:
        return [tracked.revision for tracked in self._tracked.values()]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self.tick(self._clock())

    def _track(self, revision: Revision) -> _Tracked:
        tracked = self._tracked.get(revision.key)
        if tracked is None:
            load = self._collector.load(revision.key, self._clock())
            tracked = self._tracked[revision.key] = _Tracked(revision, load)
        tracked.revision = revision
        return tracked

    async def _step(self, tracked: _Tracked, now: float) -> None:
        stats = self._worker.stats(tracked.revision.key)
        await self._act(tracked, stats, now)
        if tracked.told == 0 and not stats.instances and not self._is_live(tracked):
            key = tracked.revision.key
            if not tracked.load.in_flight and self._tracked.get(key) is tracked:
                del self._tracked[key]
                self._collector.forget(key)

    def _is_live(self, tracked: _Tracked) -> bool:
        key = tracked.revision.key
        return self._live.get((key.namespace, key.function)) == key

    async def _act(self, tracked: _Tracked, stats: RevisionStats, now: float, *, only_up: bool = False) -> None:
        revision, spec = tracked.revision, tracked.revision.spec
        idle, live = 0.0 if tracked.fading else spec.scale.idle_seconds, self._is_live(tracked)
        windows = self._patterns.windows(revision.key, idle) if live and spec.scale.learns else None
        observed: Observed = self._collector.observe(revision.key, now, idle=idle, instances=stats.instances)
        result = decide(spec, observed, now, live=live, panic=tracked.panic, windows=windows)
        tracked.panic = result.panic
        if not result.valid or (only_up and result.desired <= stats.instances):
            return
        desired = self._within_burst(tracked, result.desired, stats, now)
        if tracked.prewarmed and not desired:
            self._prewarm_ended(tracked, stats, used=False)
        if desired == tracked.told == stats.instances:
            return
        if windows is not None and desired and not stats.instances:
            tracked.prewarmed = observed.ended is not None and 0 < windows.prewarm <= now - observed.ended
        if desired != tracked.told:
            log.debug("scale %s to %d: %s", revision.key, desired, result.reason)
        tracked.told = desired
        await self._worker.scale(revision, desired)

    def _prewarm_ended(self, tracked: _Tracked, stats: RevisionStats, *, used: bool) -> None:
        """Counted where there was one: no memory may have been free for it."""
        tracked.prewarmed = False
        if stats.instances:
            self._patterns.prewarmed(tracked.revision.key, used=used)

    def _within_burst(self, tracked: _Tracked, desired: int, stats: RevisionStats, now: float) -> int:
        """Of `desired` instances those that may be there now; the tick asks for the others as the bucket fills."""
        already = max(stats.instances, tracked.told or 0)  # what was told and is not there yet has been paid for
        if desired <= already:
            return desired
        function = (tracked.revision.key.namespace, tracked.revision.key.function)
        starts, self._buckets[function] = take(self._buckets.get(function), desired - already, now, self._burst)
        return already + starts
