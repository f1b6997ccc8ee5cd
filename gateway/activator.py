"""Holds an invocation until there is capacity for it, and gives the capacity back.

`async with activator.lease(revision, invocation) as lease:` is the whole of admission: counted in the collector,
through the breaker and under the ceiling, the scaler poked where nothing is free, then a slot of an instance from the
worker, where a cold start is waited for. Before all that: whether a budget has something left (`admit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

from faas.leases import Invocation, Lease
from faas.protocol import (
    Revision,
    RevisionKey,
    Worker,
)
from gateway.breaker import Breaker, Breakers
from gateway.ceiling import Ceiling
from gateway.collector import Collector, Load
from gateway.flight import CURRENT, Flight
from gateway.scaler import Scaler

# Raises Throttled where the function may not be called now; whether it may until `Activator.forget` is called.
Admit = Callable[[RevisionKey], bool]


class Watcher(Protocol):
    """Who remembers what the activator's parts said."""

    def forget(self) -> None: ...


def everybody(key: RevisionKey) -> bool:
    """Admits all."""
    return True


class Activator:
    """`clock` gives seconds, monotonic: the scaler's."""

    def __init__(
        self,
        worker: Worker,
        scaler: Scaler,
        collector: Collector,
        breakers: Breakers,
        ceiling: Ceiling,
        *,
        admit: Admit = everybody,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker = worker
        self.scaler = scaler
        self.collector = collector
        self.breakers = breakers
        self.ceiling = ceiling
        self.admit = admit
        self.clock = clock
        self.is_closed = False  # nobody comes in any more
        self._watchers: WeakSet[Watcher] = WeakSet()
        breakers.changed = collector.changed = self.forget

    def watch(self, watcher: Watcher) -> None:
        """Have it told to forget a revision's breaker and load, and whether it is admitted, when they may change."""
        self._watchers.add(watcher)

    def forget(self) -> None:
        """Tell all who watch."""
        for watcher in list(self._watchers):
            watcher.forget()

    def close(self) -> None:
        self.is_closed = True
        self.forget()

    def lease(self, revision: Revision, invocation: Invocation) -> Activation:
        """A slot for `invocation`. Entering raises Throttled, InitFailed, Unavailable."""
        return Activation(self, revision, invocation)


class Activation:
    """One invocation's way in and out (a class: a generator as context manager costs twice as much)."""

    __slots__ = (
        "_activator", "_breaker", "_flight", "_invocation", "_lease", "_load", "_revision", "_slot", "_under_ceiling",
    )  # fmt: skip

    def __init__(self, activator: Activator, revision: Revision, invocation: Invocation) -> None:
        self._activator = activator
        self._revision = revision
        self._invocation = invocation
        self._load: Load
        self._breaker: Breaker
        self._slot: AbstractAsyncContextManager[Lease]
        self._lease: Lease
        self._flight: Flight | None = CURRENT.get()
        self._under_ceiling = False

    async def __aenter__(self) -> Lease:
        activator, revision, invocation = self._activator, self._revision, self._invocation
        activator.admit(revision.key)
        began = activator.clock()
        if (flight := self._flight) is not None:
            flight.began = time.perf_counter()
        self._load = activator.collector.load(revision.key, began)
        self._load.enter(began)
        self._breaker = breaker = activator.breakers.of(revision)
        admitted = breaker.try_enter()
        try:
            if not admitted:
                await breaker.enter(invocation.wait_seconds)
                admitted = True
                invocation = self._waited(began)
            if not breaker.exempt:
                if not activator.ceiling.try_enter():
                    key = revision.key
                    await activator.ceiling.enter((key.namespace, key.function), invocation.wait_seconds)
                    invocation = self._waited(began)
                self._under_ceiling = True
            await activator.scaler.poke(revision)
            self._slot = activator.worker.acquire(revision, invocation)
            self._lease = lease = await self._slot.__aenter__()
        except BaseException:
            self._leave(admitted)
            raise
        if flight is not None:
            flight.admitted = time.perf_counter()
            flight.cold = lease.cold_start
        return lease

    def _waited(self, began: float) -> Invocation:
        """The invocation, with what is left of its wait."""
        left = self._invocation.wait_seconds - (self._activator.clock() - began)
        return self._invocation._replace(wait_seconds=max(0.0, left))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._slot.__aexit__(kind, error, trace)
        finally:
            self._leave(True)
            if (flight := self._flight) is not None:
                flight.ended = time.perf_counter()
                report = self._lease.report
                flight.seconds = flight.ended - flight.admitted if report is None else report.duration_seconds

    def _leave(self, admitted: bool) -> None:
        activator = self._activator
        self._load.leave(activator.clock())
        if self._under_ceiling:
            self._under_ceiling = False
            activator.ceiling.leave()
        if admitted:
            self._breaker.leave()
