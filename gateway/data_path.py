"""The data path's parts, wired: what every invocation passes, from its name to an instance."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from faas.metrics import Metrics
from faas.protocol import Worker
from gateway.activator import Activator, Admit, everybody
from gateway.breaker import Breakers
from gateway.ceiling import MAX_CONCURRENCY, Ceiling
from gateway.collector import Collector
from gateway.counters import Counters
from gateway.discovery import Discovery, Found
from gateway.edge.canary.canaries import Canaries
from gateway.idle_patterns import IdlePatterns
from gateway.invoke import Invoker
from gateway.reservations import Reservations
from gateway.router import Router
from gateway.scaler import BURST, Scaler


@dataclass(frozen=True, slots=True)
class DataPath:
    router: Router
    scaler: Scaler
    invoker: Invoker
    patterns: IdlePatterns
    reservations: Reservations
    activator: Activator
    canaries: Canaries

    @classmethod
    def create(
        cls,
        worker: Worker,
        metrics: Metrics,
        found: Found | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        admit: Admit = everybody,
        max_concurrency: int = MAX_CONCURRENCY,
        burst: int = BURST,
    ) -> DataPath:
        """`found` stores a revision whose interface has become known; `clock` gives seconds, monotonic; `admit` raises
        Throttled for a function that may not be called now; `max_concurrency`: invocations of all functions at once;
        `burst`: instances that one function may start at once.
        """
        router, collector = Router(), Collector()
        patterns = IdlePatterns(metrics, clock=clock)
        scaler = Scaler(worker, collector, patterns, burst=burst, clock=clock)
        breakers, ceiling = Breakers(), Ceiling(max_concurrency)
        activator = Activator(worker, scaler, collector, breakers, ceiling, admit=admit, clock=clock)
        invoker = Invoker(activator, Counters(metrics), Discovery(worker, router, found))
        reservations = Reservations(worker, ceiling, breakers)
        return cls(router, scaler, invoker, patterns, reservations, activator, Canaries(metrics, clock=clock))

    async def start(self) -> None:
        await self.scaler.start()

    async def stop(self, grace_seconds: float) -> None:
        """Finish what runs, within `grace_seconds`."""
        await self.invoker.close(grace_seconds)
        await self.scaler.stop()
