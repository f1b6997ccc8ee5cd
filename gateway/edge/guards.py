"""`Guards`: what keeps requests from functions though their callers are welcome, as one value that starts and stops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from faas.errors import CircuitOpen, Throttled
from faas.leases import Trigger
from faas.metrics import Metrics
from faas.remote import client_address
from faas.state.session import Database
from gateway.edge.caller import Caller
from gateway.edge.circuits import Circuits, Trial
from gateway.edge.doorman import Doorman
from gateway.edge.entry import Entry
from gateway.edge.limits import Limits, gives_back
from gateway.edge.maintenance import Maintenance, bypasses, refusal
from gateway.invoke import Invoker
from gateway.plan_book import PlanBook


@dataclass(slots=True)
class Guards:
    """Both listeners share them."""

    maintenance: Maintenance
    plans: PlanBook
    limits: Limits
    circuits: Circuits

    @classmethod
    def create(cls, database: Database, metrics: Metrics, changed: Callable[[], None]) -> Self:
        """`changed` is called where maintenance begins or ends."""
        plans = PlanBook(database, metrics)
        return cls(Maintenance(database, changed), plans, Limits(plans), Circuits(metrics))

    async def start(self) -> None:
        await self.maintenance.start()
        await self.plans.start()

    async def stop(self) -> None:
        await self.plans.stop()

    async def closed(self, request: web.Request, entry: Entry, doorman: Doorman) -> web.Response | None:
        """The answer where the function is not served now."""
        notice = self.maintenance.notice(entry.route.label)
        if notice is None or await bypasses(request, entry, doorman.authenticator, doorman.attempts):
            return None
        return refusal(request, notice)

    @asynccontextmanager
    async def within(
        self, request: web.Request, entry: Entry, caller: Caller, invoker: Invoker, trigger: Trigger = Trigger.HTTP
    ) -> AsyncIterator[Trial]:
        """`async with guards.within(…) as trial:` the request is within its limits, and the function's circuit is
        closed: tell the trial the answer's status. A unit of a quota is given back where the block refuses the request
        for want of capacity. What is only stored now (`trigger`) is tried by no circuit.

        Raises Throttled and CircuitOpen (both counted), Forbidden.
        """
        count = None
        try:
            if entry.rules.throttle is not None or caller.plan:
                count = self.limits.admit(entry, caller, client_address(request))
            trial = self.circuits.trial(entry if trigger is Trigger.HTTP else None)
        except (Throttled, CircuitOpen) as error:
            if count is not None:
                count.add(-1)
            invoker.counters(entry.route, trigger).not_started(error)
            raise
        try:
            with trial:
                yield trial
        except Exception as error:
            if count is not None and gives_back(error):
                count.add(-1)
            raise
