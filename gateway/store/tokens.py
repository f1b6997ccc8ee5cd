"""Tokens, as their hashes only: nobody can read one back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update

from faas.auth import Principal, Role
from faas.state.people import tokens
from faas.state.session import Transaction


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What a token says of itself, its hash (`faas.auth.hash_token`), and when it was made (Unix seconds, all of them).

    `principal` is what it may at most; what that is at all is its `user`'s matter, where it has one. `old_hash` opens
    too, until `old_expires_at`: the one before the last rotation.
    """

    principal: Principal
    hash: str
    created_at: float
    user: str = ""
    created_by: str = ""
    expires_at: float | None = None
    last_used_at: float | None = None
    old_hash: str | None = None
    old_expires_at: float | None = None

    @property
    def name(self) -> str:
        """Its own, which no other token and no user has."""
        return self.principal.name

    def lives(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


async def every(tx: Transaction) -> list[TokenRow]:
    """By name."""
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
            row.user,
            row.created_by,
            row.expires_at,
            row.last_used_at,
            row.old_hash,
            row.old_expires_at,
        )
        for row in rows
    ]


async def add(tx: Transaction, row: TokenRow) -> None:
    """Raises Conflict where the name is taken."""
    await tx.execute(
        insert(tokens).values(
            namespace=row.principal.namespace,
            name=row.name,
            role=row.principal.role.value,
            functions=json.dumps(row.principal.functions),
            repositories=json.dumps(row.principal.repositories),
            hash=row.hash,
            created_at=row.created_at,
            user=row.user,
            created_by=row.created_by,
            expires_at=row.expires_at,
        )
    )


async def put_hashes(tx: Transaction, row: TokenRow) -> None:
    """Write what opens from now on."""
    values = {"hash": row.hash, "old_hash": row.old_hash, "old_expires_at": row.old_expires_at}
    await tx.execute(update(tokens).where(tokens.c.name == row.name).values(**values))


async def used(tx: Transaction, times: Mapping[str, float]) -> None:
    """Write when tokens were last used: name → Unix seconds."""
    rows: Sequence[Mapping[str, object]] = [{"one": one, "at": at} for one, at in times.items()]
    await tx.execute(update(tokens).where(tokens.c.name == bindparam("one")).values(last_used_at=bindparam("at")), rows)


async def remove(tx: Transaction, *names: str) -> None:
    await tx.execute(delete(tokens).where(tokens.c.name.in_(names)))


async def remove_of(tx: Transaction, user: str) -> None:
    """All tokens of a user."""
    await tx.execute(delete(tokens).where(tokens.c.user == user))
