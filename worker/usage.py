"""`UsageMeter`: what all instances use now, measured seldom enough to cost nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping

from faas.protocol import RevisionUsage, WorkerUsage
from worker.drivers.base import Driver, Sandbox, SandboxStats
from worker.memory.ledger import Ledger
from worker.revision_pool import RevisionPool

FRESH_SECONDS = 0.5
COST_SHARE = 0.1  # of one core: what takes longer to measure is measured less often
CPU_WINDOW_SECONDS = 60.0  # an average over more than this says nothing about now


class UsageMeter:
    """Asks the kernel in a thread, one question at a time; who comes meanwhile or shortly after shares the answer."""

    def __init__(self, driver: Driver, ledger: Ledger) -> None:
        self._driver = driver
        self._ledger = ledger
        self._one = asyncio.Lock()
        self._last: WorkerUsage | None = None
        self._fresh_until = 0.0
        self._cpu_seconds: dict[str, float] = {}  # by sandbox, at the last measurement
        self._measured_at = 0.0

    async def usage(self, pools: Collection[RevisionPool]) -> WorkerUsage:
        async with self._one:
            if self._last is None or time.monotonic() >= self._fresh_until:
                began = time.monotonic()
                self._last = await self._measure(list(pools), began)
                took = time.monotonic() - began
                self._fresh_until = time.monotonic() + max(FRESH_SECONDS, took / COST_SHARE)
            return self._last

    async def _measure(self, pools: list[RevisionPool], now: float) -> WorkerUsage:
        sandboxes = {pool: [i.sandbox for i in pool.every_instance if i.sandbox is not None] for pool in pools}
        everything = [sandbox for found in sandboxes.values() for sandbox in found]
        stats = await asyncio.to_thread(self._read, everything)
        elapsed = now - self._measured_at
        known = self._last is not None and 0 < elapsed <= CPU_WINDOW_SECONDS
        ledger = self._ledger
        usage = WorkerUsage(
            at=time.time(),
            budget_bytes=ledger.budget,
            charged_bytes=dict(ledger.charged),
            waiting=ledger.waiting,
            evictions=sum(ledger.evictions.values()),
            revisions=tuple(
                self._of(pool, [stats[s.id] for s in found], self._used(found, stats) / elapsed if known else None)
                for pool, found in sandboxes.items()
            ),
        )
        self._cpu_seconds = {sandbox_id: one.cpu_seconds for sandbox_id, one in stats.items()}
        self._measured_at = now
        return usage

    def _read(self, sandboxes: list[Sandbox]) -> dict[str, SandboxStats]:
        """Blocking: some file reads for each. One that is gone meanwhile uses nothing."""
        return {sandbox.id: self._driver.stats(sandbox) for sandbox in sandboxes}

    def _used(self, sandboxes: list[Sandbox], stats: Mapping[str, SandboxStats]) -> float:
        """CPU seconds since the last measurement; of one that is new, all that it used."""
        spent = (stats[s.id].cpu_seconds - self._cpu_seconds.get(s.id, 0.0) for s in sandboxes)
        return sum(max(0.0, seconds) for seconds in spent)

    @staticmethod
    def _of(pool: RevisionPool, stats: list[SandboxStats], cpus: float | None) -> RevisionUsage:
        charged = sum(i.charge.charged for i in pool.every_instance if i.charge is not None)
        return RevisionUsage(pool.revision.key, pool.stats(), sum(s.memory_bytes for s in stats), charged, cpus)
