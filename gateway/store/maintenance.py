"""What is not served for a while, and what its callers are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import maintenance


@dataclass(frozen=True, slots=True)
class Notice:
    """`namespace` and `function` are both "*" for everything. `retry_after`: seconds; `since`: Unix seconds."""

    namespace: str
    function: str
    message: str
    retry_after: int
    since: float
    by: str


async def every(tx: Transaction) -> list[Notice]:
    rows = await tx.execute(select(maintenance).order_by(maintenance.c.namespace, maintenance.c.function))
    return [Notice(*row) for row in rows]


async def put(tx: Transaction, notice: Notice) -> None:
    values = asdict(notice)
    await tx.execute(insert(maintenance).values(values).on_conflict_do_update(set_=values))


async def remove(tx: Transaction, namespace: str, function: str) -> None:
    where = (maintenance.c.namespace == namespace, maintenance.c.function == function)
    await tx.execute(delete(maintenance).where(*where))
