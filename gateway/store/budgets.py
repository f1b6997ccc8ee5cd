"""Budgets: what a namespace, or one function of it, may use in a month."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from decimal import Decimal

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import budgets


class Unit(enum.StrEnum):
    """What a budget counts. A cost is in the price list's currency."""

    COST = "cost"
    GB_SECONDS = "gb_seconds"
    REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Budget:
    """So much of `unit` in a month; `function` "" is the whole namespace. `warn`: percent of it.

    With `throttle`, what is beyond it is refused until the month ends.
    """

    namespace: str
    name: str
    function: str
    unit: Unit
    amount: Decimal
    warn: int
    throttle: bool


async def every(tx: Transaction) -> list[Budget]:
    rows = await tx.execute(select(budgets).order_by(budgets.c.namespace, budgets.c.name))
    return [
        Budget(row.namespace, row.name, row.function, Unit(row.unit), Decimal(row.amount), row.warn, row.throttle)
        for row in rows
    ]


async def put(tx: Transaction, budget: Budget) -> None:
    values = asdict(budget) | {"unit": budget.unit.value, "amount": str(budget.amount)}
    await tx.execute(insert(budgets).values(values).on_conflict_do_update(set_=values))


async def remove(tx: Transaction, namespace: str, name: str) -> None:
    await tx.execute(delete(budgets).where(budgets.c.namespace == namespace, budgets.c.name == name))
