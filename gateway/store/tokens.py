"""Tokens, as their hashes only: nobody can read one back."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from faas.auth import Principal, Role
from faas.state.session import Transaction
from faas.state.tables import tokens


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Whose token it is, its hash (`faas.auth.hash_token`), and when it was made (Unix seconds)."""

    principal: Principal
    hash: str
    created_at: float


async def every(tx: Transaction) -> list[TokenRow]:
    rows = await tx.execute(select(tokens).order_by(tokens.c.name))
    return [
        TokenRow(
            Principal(
                row.name,
                Role(row.role),
                row.namespace,
                tuple(json.loads(row.functions)),
                tuple(json.loads(row.repositories)),
            ),
            row.hash,
            row.created_at,
        )
        for row in rows
    ]


async def add(tx: Transaction, row: TokenRow) -> None:
    """Raises Conflict where the name is taken."""
    await tx.execute(
        insert(tokens).values(
            namespace=row.principal.namespace,
            name=row.principal.name,
            role=row.principal.role.value,
            functions=json.dumps(row.principal.functions),
            repositories=json.dumps(row.principal.repositories),
            hash=row.hash,
            created_at=row.created_at,
        )
    )


async def remove(tx: Transaction, name: str) -> None:
    await tx.execute(delete(tokens).where(tokens.c.name == name))
