"""WebSocket APIs, as their owners wrote them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas.state.session import Transaction
from faas.state.tables import websocket_apis


@dataclass(frozen=True, slots=True)
class Row:
    """`definition` is JSON with the control API's keys; `changed_at` Unix time."""

    namespace: str
    name: str
    path: str
    definition: str
    changed_at: float


async def every(tx: Transaction) -> list[Row]:
    rows = await tx.execute(select(websocket_apis).order_by(websocket_apis.c.namespace, websocket_apis.c.name))
    return [Row(row.namespace, row.name, row.path, row.definition, row.changed_at) for row in rows]


async def put(tx: Transaction, row: Row) -> None:
    values = asdict(row)
    await tx.execute(
        insert(websocket_apis).values(values).on_conflict_do_update(index_elements=["namespace", "name"], set_=values)
    )


async def remove(tx: Transaction, namespace: str, name: str) -> None:
    await tx.execute(
        delete(websocket_apis).where(websocket_apis.c.namespace == namespace, websocket_apis.c.name == name)
    )
