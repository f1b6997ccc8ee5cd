"""Usage plans, and what each key has used of its plan in a period."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select, tuple_
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import plan_usage, plans
from gateway.quotas import Period, Where


@dataclass(frozen=True, slots=True)
class Plan:
    """What each key of it may do: `rate` requests a second with `burst` at once, `quota` in each `period`; 0: any.

    `functions` and `apis`: what it is for; where both are empty, everything of its namespace.
    """

    namespace: str
    name: str
    rate: float = 0.0
    burst: int = 0
    quota: int = 0
    period: Period = Period.MONTH
    functions: tuple[str, ...] = ()
    apis: tuple[str, ...] = ()

    def covers(self, function: str, api: str) -> bool:
        """Whether it is for calls of `function` by its own path, or (`api`) through that API."""
        if not self.functions and not self.apis:
            return True
        return api in self.apis if api else function in self.functions


async def every(tx: Transaction) -> list[Plan]:
    rows = await tx.execute(select(plans).order_by(plans.c.namespace, plans.c.name))
    return [
        Plan(
            row.namespace, row.name, row.rate, row.burst, row.quota, Period(row.period),
            tuple(json.loads(row.functions)), tuple(json.loads(row.apis)),
        )
        for row in rows
    ]  # fmt: skip


async def put(tx: Transaction, plan: Plan) -> None:
    values = {
        "namespace": plan.namespace, "name": plan.name, "rate": plan.rate, "burst": plan.burst, "quota": plan.quota,
        "period": plan.period.value, "functions": json.dumps(plan.functions), "apis": json.dumps(plan.apis),
    }  # fmt: skip
    await tx.execute(insert(plans).values(values).on_conflict_do_update(set_=values))


async def remove(tx: Transaction, namespace: str, name: str) -> None:
    """With everything that was used of it."""
    await tx.execute(delete(plans).where(plans.c.namespace == namespace, plans.c.name == name))
    await tx.execute(delete(plan_usage).where(plan_usage.c.namespace == namespace, plan_usage.c.plan == name))


def add(tx: Connection, rows: Collection[tuple[Where, int]]) -> None:
    """Add to what is there: one statement, however many rows."""
    values = [
        {
            "namespace": where.namespace, "plan": where.plan, "key": where.key,
            "period": where.period.value, "start": where.start, "used": units,
        }
        for where, units in rows
    ]  # fmt: skip
    statement = insert(plan_usage)
    key = [column.name for column in plan_usage.primary_key]
    added = {"used": plan_usage.c.used + statement.excluded.used}
    tx.execute(statement.on_conflict_do_update(index_elements=key, set_=added), values)


async def used(tx: Transaction, periods: Collection[tuple[Period, int]]) -> list[tuple[Where, int]]:
    """What was used in each of these (period, start)."""
    which = tuple_(plan_usage.c.period, plan_usage.c.start).in_([(period.value, start) for period, start in periods])
    return [
        (Where(row.namespace, row.plan, row.key, Period(row.period), row.start), row.used)
        for row in await tx.execute(select(plan_usage).where(which))
    ]


def drop(tx: Connection, before: int) -> None:
    """Forget periods that began before then."""
    tx.execute(delete(plan_usage).where(plan_usage.c.start < before))
