"""Budgets at work: who may still be called this month, and who is told how much of a budget is left.

Looked at in memory when an invocation asks to come in. What is in flight when a budget is reached ends, and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from faas.errors import Conflict, NotFound, Throttled
from faas.metrics import Metrics
from faas.protocol import RevisionKey
from faas.state.session import Database
from gateway.month import MonthToDate, Spent
from gateway.prices import MB_MS, Prices
from gateway.router import function_label
from gateway.store import budgets
from gateway.store.budgets import Budget, Unit

log = logging.getLogger("faas.budgets")

REASON = "budget"  # of a throttled call
LOOK_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 86_400  # a budget may be raised before its month ends
MOST_BUDGETS = 100  # of a namespace: each is looked at when an invocation asks to come in


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget as whole numbers: `per_request` × requests + `per_mb_ms` × mb_ms may come up to `most`."""

    per_request: int
    per_mb_ms: int
    most: int

    def used(self, spent: Spent) -> int:
        return self.per_request * spent.requests + self.per_mb_ms * spent.mb_ms

    def ratio(self, spent: Spent) -> float:
        return self.used(spent) / self.most


def limit_of(budget: Budget, prices: Prices) -> Limit:
    """Exact: fractions over their common denominator. A cost is by the list: the free allowance belongs to the whole
    server, and no budget can tell whose it is."""
    amount = Fraction(budget.amount)
    if budget.unit is Unit.REQUESTS:
        per_request, per_mb_ms = Fraction(1), Fraction(0)
    elif budget.unit is Unit.GB_SECONDS:
        per_request, per_mb_ms = Fraction(0), Fraction(1, MB_MS)
    else:
        per_request, per_mb_ms = Fraction(prices.per_request), Fraction(prices.per_gb_second) / MB_MS
    scale = math.lcm(amount.denominator, per_request.denominator, per_mb_ms.denominator)
    return Limit(*(int(part * scale) for part in (per_request, per_mb_ms, amount)))


class State(enum.IntEnum):
    """How a budget stands, best first."""

    OK = 0
    WARNING = 1
    EXCEEDED = 2


def judge(limit: Limit, warn: int, spent: Spent) -> State:
    used = limit.used(spent)
    if used >= limit.most:
        return State.EXCEEDED
    return State.WARNING if used * 100 >= limit.most * warn else State.OK


@dataclass(slots=True)
class Watched:
    """A budget, and how it stood when it was last looked at."""

    budget: Budget
    limit: Limit
    state: State = State.OK

    @property
    def scope(self) -> tuple[str, str]:
        return self.budget.namespace, self.budget.function

    @property
    def label(self) -> str:
        return function_label(self.budget.namespace, self.budget.name)


class Spending:
    """All budgets, in memory as they are stored. `start`ed once, `stop`ped once; `clock` gives Unix seconds."""

    def __init__(
        self,
        database: Database,
        month: MonthToDate,
        prices: Prices,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._month = month
        self.prices = prices
        self._metrics = metrics
        self._clock = clock
        self._watched: dict[tuple[str, str], Watched] = {}
        self._throttling: dict[tuple[str, str], list[Limit]] = {}  # scope → limits of those that refuse
        self.changed: Callable[[], None] = lambda: None  # called where `admit` may say something else than before
        self._changes = asyncio.Lock()  # of stored budgets: memory follows in the same order
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        async with self._database.read() as tx:
            stored = await budgets.every(tx)
        for budget in stored:
            self._watch(budget)
        self._loop = asyncio.create_task(self._run(), name="budgets")

    async def stop(self) -> None:
        self._closing.set()
        if self._loop is not None:
            await self._loop
            self._loop = None

    def admit(self, key: RevisionKey) -> bool:
        """Whether that holds until `changed` is called. Raises Throttled where a budget is used up; strangers hear no
        names."""
        if not self._throttling:
            return True
        now, month = self._clock(), self._month
        month.turn(now)
        for scope in ((key.namespace, key.function), (key.namespace, "")):
            for limit in self._throttling.get(scope, ()):
                if limit.used(month.look(*scope)) >= limit.most:
                    wait = min(LONGEST_RETRY_SECONDS, math.ceil(month.end - now))
                    raise Throttled("this month's budget is used up", reason=REASON, retry_after=wait)
        return False

    # Control

    def every(self) -> list[Watched]:
        """By namespace and name, as they stand now."""
        self.look()
        return [watched for _, watched in sorted(self._watched.items())]

    def get(self, namespace: str, name: str) -> Watched:
        """Raises NotFound."""
        self.look()
        if (watched := self._watched.get((namespace, name))) is None:
            raise NotFound(f"there is no budget {function_label(namespace, name)}", hint="see faas budget ls")
        return watched

    @property
    def month_end(self) -> float:
        """Unix seconds: then all begin anew."""
        return self._month.end

    def spent(self, watched: Watched) -> Spent:
        """In its scope, since the month began."""
        return self._month.look(*watched.scope)

    async def put(self, budget: Budget) -> bool:
        """Make or replace; whether it is new. Raises Conflict where the namespace has too many, Unavailable."""
        key = (budget.namespace, budget.name)
        async with self._changes:
            is_new = key not in self._watched
            if (
                is_new
                and sum(one.budget.namespace == budget.namespace for one in self._watched.values()) >= MOST_BUDGETS
            ):
                raise Conflict(f"a namespace has at most {MOST_BUDGETS} budgets", hint="delete one: faas budget rm")
            async with self._database.write() as tx:
                await budgets.put(tx, budget)
            self._watch(budget)
        return is_new

    async def remove(self, namespace: str, name: str) -> None:
        """Raises NotFound, Unavailable."""
        async with self._changes:
            watched = self.get(namespace, name)
            async with self._database.write() as tx:
                await budgets.remove(tx, namespace, name)
            del self._watched[namespace, name]
            self._metrics.budget_used.remove_by_labels({"budget": watched.label})
            self._index()

    # Inside

    def _watch(self, budget: Budget) -> None:
        watched = Watched(budget, limit_of(budget, self.prices))
        self._watched[budget.namespace, budget.name] = watched
        ratio = self._metrics.budget_used.labels(watched.label)
        ratio.set_function(lambda: self._ratio(watched))  # when it is read: an invocation costs it nothing
        self._index()

    def _ratio(self, watched: Watched) -> float:
        self._month.turn(self._clock())
        return watched.limit.ratio(self.spent(watched))

    def _index(self) -> None:
        self._throttling = {}
        for watched in self._watched.values():
            if watched.budget.throttle:
                self._throttling.setdefault(watched.scope, []).append(watched.limit)
        self.changed()

    def look(self) -> None:
        """How each stands now; what has become worse is logged, once a month (and once after a start)."""
        self._month.turn(self._clock())
        for watched in self._watched.values():
            before, spent = watched.state, self.spent(watched)
            watched.state = judge(watched.limit, watched.budget.warn, spent)
            if watched.state > before:
                throttled = watched.state is State.EXCEEDED and watched.budget.throttle
                log.warning(
                    "budget %s: %.0f %% of this month's %s %s are used%s",
                    watched.label, 100 * watched.limit.ratio(spent), watched.budget.amount, watched.budget.unit.value,
                    "; calls are refused until the month ends" if throttled else "",
                )  # fmt: skip

    async def _run(self) -> None:
        while not self._closing.is_set():
            self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._closing.wait()
