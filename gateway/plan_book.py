"""`PlanBook`: usage plans at work. Who has an API key of a plan comes in at its rate and within its quota.

Decided in memory; plans are stored at once, and what keys have used each second, in one transaction. `kill -9` takes
about the last second of it, a stop nothing. A request that is refused later for want of capacity gives its unit back.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial

from faas.background import Background
from faas.errors import Conflict, Forbidden, NotFound, Throttled
from faas.metrics import Metrics
from faas.state.session import Database
from gateway.edge.throttle import Buckets, Rate, retry_after
from gateway.quotas import DAY, Count, Period, Quotas, Span, Where
from gateway.router import function_label
from gateway.store import plans
from gateway.store.plans import Plan
from gateway.writing import Writing

RATE_EXCEEDED = "CallerRateLimitExceeded"
QUOTA_EXCEEDED = "QuotaExceeded"
KEPT_DAYS = 400
MOST_PLANS = 100  # of a namespace
ADMITTED, THROTTLED, OVER_QUOTA = "admitted", "throttled", "over_quota"  # as `faas_plan_requests_total` counts


class Standing:
    """A plan, and the buckets of its keys."""

    __slots__ = ("buckets", "counts", "plan")

    def __init__(self, plan: Plan, metrics: Metrics) -> None:
        self.plan = plan
        self.buckets = Buckets(Rate(plan.rate, plan.burst)) if plan.rate else None
        label = function_label(plan.namespace, plan.name)
        outcomes = (ADMITTED, THROTTLED, OVER_QUOTA)
        self.counts = {outcome: metrics.plan_requests.labels(label, outcome) for outcome in outcomes}


class PlanBook:
    """`start`ed once, `stop`ped once. `clock` gives Unix seconds, `monotonic` those that never jump."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._standing: dict[tuple[str, str], Standing] = {}
        self._quotas = Quotas()
        self._changes = asyncio.Lock()  # of stored plans: memory follows in the same order
        self._turn = asyncio.Lock()  # of writing what was used
        self._background = Background()
        self._writing = Writing("the usage of plans", self.write, self._tidy)

    async def start(self) -> None:
        now = self._clock()
        async with self._database.read() as tx:
            stored = await plans.every(tx)
            used = await plans.used(tx, [(period, self._quotas.span(period, now).start) for period in Period])
        self._quotas.load(used)
        for plan in stored:
            self._standing[plan.namespace, plan.name] = Standing(plan, self._metrics)
        self._writing.start()

    async def stop(self) -> None:
        """Write what is there."""
        await self._writing.stop()

    def admit(self, namespace: str, name: str, key: str, *, function: str, api: str) -> Count:
        """A request with the API key `key` of that plan comes in, and has taken a unit: of what is returned.

        Raises Throttled; Forbidden where the plan is not for this function or API, or is gone.
        """
        standing = self._standing.get((namespace, name))
        if standing is None or not standing.plan.covers(function, api):
            raise Forbidden("the usage plan of this key does not cover this")
        plan, now = standing.plan, self._clock()
        span = self._quotas.span(plan.period, now)
        count = self._quotas.of(Where(namespace, name, key, plan.period, span.start))
        ticks = self._monotonic()
        if standing.buckets is not None and (wait := standing.buckets.wait(key, ticks)):
            standing.counts[THROTTLED].inc()
            words = "this key calls more often than its usage plan allows"
            raise Throttled(words, reason=RATE_EXCEEDED, retry_after=retry_after(wait))
        if plan.quota and count.used >= plan.quota:
            standing.counts[OVER_QUOTA].inc()
            wait = max(1, math.ceil(span.end - now))
            raise Throttled(f"this {plan.period}'s quota is used up", reason=QUOTA_EXCEEDED, retry_after=wait)
        if standing.buckets is not None:
            standing.buckets.take(key, ticks)
        standing.counts[ADMITTED].inc()
        count.add(1)
        return count

    # Control

    def every(self) -> list[Plan]:
        """By namespace and name."""
        return [standing.plan for _, standing in sorted(self._standing.items())]

    def get(self, namespace: str, name: str) -> Plan:
        """Raises NotFound."""
        if (standing := self._standing.get((namespace, name))) is None:
            raise NotFound(f"there is no usage plan {function_label(namespace, name)}", hint="see faas plan ls")
        return standing.plan

    async def put(self, plan: Plan) -> bool:
        """Make or replace; whether it is new. What was used stays. Raises Conflict where there are too many,
        Unavailable."""
        where = (plan.namespace, plan.name)
        async with self._changes:
            is_new = where not in self._standing
            if is_new and sum(namespace == plan.namespace for namespace, _ in self._standing) >= MOST_PLANS:
                raise Conflict(f"a namespace has at most {MOST_PLANS} usage plans", hint="delete one: faas plan rm")
            async with self._database.write() as tx:
                await plans.put(tx, plan)
            before = self._standing.get(where)
            standing = self._standing[where] = Standing(plan, self._metrics)
            if before is not None and (before.plan.rate, before.plan.burst) == (plan.rate, plan.burst):
                standing.buckets = before.buckets
        return is_new

    async def remove(self, namespace: str, name: str) -> None:
        """With what was used of it. Raises NotFound, Unavailable."""
        async with self._changes, self._turn:
            self.get(namespace, name)
            async with self._database.write() as tx:
                await plans.remove(tx, namespace, name)
            del self._standing[namespace, name]
            self._quotas.forget(namespace, name)
            self._metrics.plan_requests.remove_by_labels({"plan": function_label(namespace, name)})

    def used(self, plan: Plan) -> tuple[Span, dict[str, int]]:
        """The plan's period that runs, and key → requests in it, up to this moment."""
        span = self._quotas.span(plan.period, self._clock())
        return span, self._quotas.keys(plan.namespace, plan.name, plan.period, span.start)

    async def write(self) -> None:
        """What was used is in the database when this returns. Goes on where the caller is cancelled.

        Raises Unavailable; it is then kept for the next time.
        """
        await self._background.complete(self._write(), "plans")

    # Inside

    async def _write(self) -> None:
        async with self._turn:
            drained = self._quotas.drain()
            if not drained:
                return
            try:
                await self._database.change(partial(plans.add, rows=drained))
            except Exception:
                self._quotas.keep(drained)
                raise

    async def _tidy(self) -> None:
        now = self._clock()
        self._quotas.tidy(now)
        await self._database.change(partial(plans.drop, before=int(now) - KEPT_DAYS * DAY))
