"""`Pool`: the worker. Implements `faas.protocol.Worker` over any `Driver`.

It is told how many instances of each revision there should be and keeps that number; who asks for a slot gets the
most recently used instance, or waits for one. Nothing is stored: a restart begins with no instances.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from functools import partial
from pathlib import Path

from faas.background import Background
from faas.connections import Connections
from faas.errors import ShuttingDown, SpecError
from faas.leases import Invocation
from faas.metrics import Metrics
from faas.protocol import (
    CheckReport,
    Door,
    Ended,
    Health,
    InstanceStatus,
    Kind,
    LogQuery,
    LogRecord,
    Revision,
    RevisionKey,
    RevisionStats,
    Running,
    WorkerUsage,
)
from faas.secret import Reveal
from worker import sandbox_spec
from worker.drivers.base import LEND_SECONDS, Driver
from worker.freezer import Freezer
from worker.instance import Instance, InstanceState
from worker.janitor import Janitor
from worker.launch import Launches
from worker.lease import PoolLease
from worker.logs import LogStore
from worker.memory import budget
from worker.memory.ledger import Ledger
from worker.memory.spares import Spares
from worker.metering import Reporting, Sampler
from worker.parts import Parts
from worker.precreated import Precreator
from worker.replacing import replaced
from worker.revision_pool import RevisionPool
from worker.run import running
from worker.settling import Settling
from worker.usage import UsageMeter

REMOVAL_SECONDS = 20.0  # at the end: for instances to be killed and deleted
SETTLE_SECONDS = 0.6  # the last lines of an invocation that has just ended are worth this wait to a reader
SETTLE_LOOKS = 200
SLOW_INIT_SHARE = 0.5  # of init_timeout: a deploy is warned
GAUGED = (InstanceState.STARTING, InstanceState.IDLE, InstanceState.BUSY, InstanceState.STOPPING)


class Pool:
    """Owns `driver`: `open` opens it and `close` closes it. `logs_dir` holds the functions' logs.

    `memory_bytes` is what all instances may have together; None: the machine's memory, less a headroom. `precreated`:
    so many sandboxes are made ahead for each revision that is likely to scale.
    """

    def __init__(
        self,
        driver: Driver,
        logs_dir: Path,
        metrics: Metrics,
        *,
        memory_bytes: int | None = None,
        precreated: int = 0,
    ) -> None:
        self._driver = driver
        driver.lend = self._lend
        self._metrics = metrics
        if memory_bytes is None:
            memory_bytes = budget.budget(0, budget.machine_memory())
        self._ledger = Ledger(memory_bytes, metrics)
        self._meter = UsageMeter(driver, self._ledger)
        self._logs = LogStore(logs_dir)
        self._sampler = Sampler()
        self._janitor = Janitor(driver)
        self._freezer = Freezer(driver)
        self._ledger.hurry = self._freezer.hurry
        self._spares = Spares(driver, self._ledger)
        self._background = Background()
        cores = os.cpu_count() or 1
        at_once = 2 * cores + 2  # inits are mostly waiting, for whatever the function asks
        launches = Launches(driver, cores + 1)  # one of them waits for the kernel
        self._reporting = Reporting()
        self._settling = Settling()
        self._precreator = Precreator(precreated, driver, launches, self._janitor, self._ledger, metrics)
        self._parts = Parts(
            driver,
            launches,
            self._janitor,
            self._sampler,
            self._logs,
            metrics,
            at_once,
            self._reporting,
            self._ledger,
            self._freezer,
            self._precreator,
            self._settling,
            self._background,
        )
        self._pools: dict[RevisionKey, RevisionPool] = {}
        metrics.before_reading(self._consumed)
        self._closing = False

    def push_to(self, connections: Connections) -> None:
        """Instances that are started from now on may send messages to these, each to its own namespace's."""
        self._parts.launches.connections = connections

    async def open(self) -> None:
        """Raises Unavailable where the driver cannot run."""
        await self._driver.open()
        self._sampler.open()
        self._janitor.open()
        self._precreator.open()
        self._spares.open()

    async def close(self, grace_seconds: float) -> None:
        """Refuse what waits, let what runs finish within `grace_seconds`, then kill it; leave nothing behind."""
        self._closing = True
        pools = list(self._pools.values())
        for pool in pools:
            pool.waiters.fail_all(ShuttingDown())
        self._ledger.close(ShuttingDown())
        try:
            await asyncio.gather(*(pool.drain(grace_seconds) for pool in pools))
        finally:  # whatever went wrong there, nothing stays
            await self._background.cancel()
            await self._precreator.close(REMOVAL_SECONDS)
            await self._spares.close()
            await self._freezer.close()
            await self._janitor.close(REMOVAL_SECONDS)
            await self._sampler.close()
            self._settling.close()
            await self._logs.close()
            await self._driver.close()

    # Worker

    async def prepare(self, revision: Revision) -> None:
        """The image's layers, unpacked, and whether it can ever run. Raises SpecError, ImageUnusable, Unavailable."""
        self._check_memory(revision)
        image = await self._parts.launches.prepare(revision.image)
        self._parts.launches.spec(revision, image, "check")

    async def collect(self, held: Collection[str]) -> int:
        self._parts.launches.forget(held)
        return await self._driver.collect(held)

    async def check(self, revision: Revision) -> CheckReport:
        """Start one instance and keep it, idle. Raises InitFailed with diagnosis and log tail, ImageUnusable."""
        if self._closing:
            raise ShuttingDown
        pool = self._of(revision)
        pool.retired = False
        instance, ready = pool.start(checking=True)
        await asyncio.shield(ready)
        cold = instance.cold_start
        assert cold is not None
        instance.output.take_now()
        warnings = await self._warnings(revision, instance, cold.init)
        return CheckReport(instance.interface, cold.init, instance.output.tail(), warnings)

    def _check_memory(self, revision: Revision) -> None:
        """Refuse what could never start: a deploy is the moment to hear of it."""
        spec, most = revision.spec, self._ledger.budget // budget.MEGABYTE
        if spec.memory > most:
            key, wanted = "memory", f"{spec.memory} MB"
        elif spec.memory * spec.scale.min > most:
            key, wanted = "scale.min", f"{spec.scale.min} instances of {spec.memory} MB"
        else:
            return
        raise SpecError(
            f"{key}: {wanted} can never run here: all instances may have {most} MB together",
            key=key,
            hint=f"lower {key}, or raise the server's memory_budget",
        )

    async def _warnings(self, revision: Revision, instance: Instance, init_seconds: float) -> tuple[str, ...]:
        spec = revision.spec
        image = await self._parts.launches.image(revision.image)
        found = [sandbox_spec.user_warning(image.config.user), *image.warnings]
        if init_seconds > spec.init_timeout * SLOW_INIT_SHARE:
            found.append(f"init took {init_seconds:.1f} s of the {spec.init_timeout} s it may take")
        instance.sample(time.monotonic())
        if instance.memory_bytes > spec.memory_bytes * 0.8:
            found.append(f"init alone uses {instance.memory_bytes // 1_048_576} MB of {spec.memory} MB")
        return tuple(filter(None, found))

    def acquire(self, revision: Revision, invocation: Invocation) -> PoolLease:
        if self._closing:
            raise ShuttingDown
        return PoolLease(self._of(revision), invocation, self._background)

    def door(self, revision: Revision) -> Door:
        pool = self._pools.get(revision.key)
        return shut if pool is None or self._closing else pool.claim

    async def scale(self, revision: Revision, desired: int) -> None:
        if self._closing:
            return
        if desired or revision.key in self._pools:
            self._of(revision).scale(desired)

    def reserve(self, namespace: str, function: str, memory_bytes: int) -> None:
        self._ledger.reserve(sandbox_spec.label_of(namespace, function), memory_bytes)

    async def retire(self, key: RevisionKey) -> None:
        self._precreator.forget(key)
        if (pool := self._pools.get(key)) is not None:
            pool.retire()

    def reveal_with(self, reveal: Reveal) -> None:
        self._parts.launches.reveal = reveal

    async def renew(self, revision: Revision, *, running: bool) -> int:
        self._precreator.outdated(revision)
        pool = self._pools.get(revision.key)
        return await replaced(pool) if running and pool is not None and not self._closing else 0

    def report_to(self, ended: Ended) -> None:
        self._reporting.ended = ended

    def settle(self) -> None:
        self._settling.settle_several()
        for pool in self._pools.values():
            pool.consumption.settle()

    @contextlib.asynccontextmanager
    async def run(
        self, revision: Revision, kind: Kind, *, wait_seconds: float, terminal: bool = False
    ) -> AsyncIterator[Running]:
        if self._closing:
            raise ShuttingDown
        async with running(self._parts, self._background, revision, kind, wait_seconds, terminal) as started:
            yield started

    async def usage(self) -> WorkerUsage:
        self._spares.update()
        return await self._meter.usage(self._pools.values())

    def stats(self, key: RevisionKey) -> RevisionStats:
        pool = self._pools.get(key)
        return pool.stats() if pool is not None else RevisionStats()

    def instances(self, key: RevisionKey) -> list[InstanceStatus]:
        pool, now = self._pools.get(key), time.monotonic()
        return [instance.status(now) for instance in pool.every_instance] if pool is not None else []

    def health(self, key: RevisionKey) -> Health:
        pool = self._pools.get(key)
        return self._parts.failures.health(key, self._ledger.stuck(pool) if pool is not None else 0)

    async def logs(self, query: LogQuery) -> AsyncGenerator[LogRecord, None]:
        for _ in range(SETTLE_LOOKS):
            if self._is_settled(query.namespace, query.function):
                break
            await asyncio.sleep(SETTLE_SECONDS / SETTLE_LOOKS)
        async with contextlib.aclosing(self._logs.query(query)) as records:
            async for record in records:
                yield record

    def forget_logs(self, namespace: str, function: str) -> None:
        self._logs.forget(namespace, function)

    # Inside

    @contextlib.asynccontextmanager
    async def _lend(self, size: int) -> AsyncIterator[None]:
        """Memory for what the driver runs of its own. Raises Throttled."""
        with await self._ledger.ask(Kind.JOB, size).charge(LEND_SECONDS):
            yield

    def _of(self, revision: Revision) -> RevisionPool:
        pool = self._pools.get(revision.key)
        if pool is None:
            pool = self._pools[revision.key] = RevisionPool(revision, self._parts, self._empty)
            self._gauge(pool.label)
        elif pool.revision is not revision:
            pool.revision = revision  # its interface may have become known
        return pool

    def _empty(self, pool: RevisionPool) -> None:
        pool.consumption.close()
        if self._pools.get(pool.revision.key) is pool:
            del self._pools[pool.revision.key]

    def _consumed(self) -> None:
        for pool in self._pools.values():
            pool.consumption.count()

    def _is_settled(self, namespace: str, function: str) -> bool:
        return all(
            instance.is_settled
            for key, pool in self._pools.items()
            if key.namespace == namespace and key.function == function
            for instance in pool.every_instance
        )

    def _gauge(self, label: str) -> None:
        """The gauges of a function count when they are read: an invocation costs them nothing."""
        for state in GAUGED:
            self._metrics.instances.labels(label, state.value).set_function(partial(self._count, label, state))
        self._metrics.memory_max.labels(label).set_function(partial(self._recent_peak, label))

    def _count(self, label: str, state: InstanceState) -> int:
        pools = [pool for pool in self._pools.values() if pool.label == label]
        if state is InstanceState.STOPPING:
            return sum(pool.stopping for pool in pools)
        return sum(int(getattr(pool.stats(), state.value)) for pool in pools)

    def _recent_peak(self, label: str) -> int:
        now = time.monotonic()
        peaks = (pool.consumption.recent_peak(now) for pool in self._pools.values() if pool.label == label)
        return max(peaks, default=0)


def shut(request_id: str) -> None:
    """The door of a revision that has no instances."""
    return
