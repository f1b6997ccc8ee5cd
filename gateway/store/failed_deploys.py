"""The last deploy of a function that failed: one row per function."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import failed_deploys, functions
from gateway.conditions import Deploy

Where = tuple[str, str]  # namespace, function


async def every(tx: Transaction) -> dict[Where, Deploy]:
    rows = await tx.execute(select(failed_deploys))
    return {(namespace, function): Deploy(*told) for namespace, function, *told in rows}


async def put(tx: Transaction, namespace: str, function: str, failed: Deploy) -> None:
    """Nothing where there is no such function: what never came to be has no row to go with."""
    known = select(functions.c.name).where(functions.c.namespace == namespace, functions.c.name == function)
    if (await tx.execute(known)).first() is None:
        return
    values = asdict(failed)
    row = insert(failed_deploys).values(namespace=namespace, function=function, **values)
    await tx.execute(row.on_conflict_do_update(index_elements=["namespace", "function"], set_=values))


async def remove(tx: Transaction, namespace: str, function: str) -> None:
    where = (failed_deploys.c.namespace == namespace, failed_deploys.c.function == function)
    await tx.execute(delete(failed_deploys).where(*where))
