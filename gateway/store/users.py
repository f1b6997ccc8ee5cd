"""Users and the roles that they hold. What opens is in `gateway.store.tokens`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import delete, insert, select

from faas.auth import Role
from faas.state.people import user_roles, users
from faas.state.session import Transaction


@dataclass(frozen=True, slots=True)
class User:
    """`roles`: namespace ("*" for all) → what it is there."""

    name: str
    created_at: float
    created_by: str
    roles: Mapping[str, Role] = field(default_factory=dict)

    @property
    def grants(self) -> tuple[tuple[str, Role], ...]:
        return tuple(sorted(self.roles.items()))


async def every(tx: Transaction) -> list[User]:
    """By name."""
    roles: dict[str, dict[str, Role]] = {}
    for row in await tx.execute(select(user_roles).order_by(user_roles.c.namespace)):
        roles.setdefault(row.user, {})[row.namespace] = Role(row.role)
    rows = await tx.execute(select(users).order_by(users.c.name))
    return [User(row.name, row.created_at, row.created_by, roles.get(row.name, {})) for row in rows]


async def add(tx: Transaction, user: User) -> None:
    """Raises Conflict where the name is taken."""
    await tx.execute(insert(users).values(name=user.name, created_at=user.created_at, created_by=user.created_by))
    await put_roles(tx, user)


async def put_roles(tx: Transaction, user: User) -> None:
    """Make `user.roles` all that it has."""
    await tx.execute(delete(user_roles).where(user_roles.c.user == user.name))
    rows = [{"namespace": of, "user": user.name, "role": role.value} for of, role in user.grants]
    if rows:
        await tx.execute(insert(user_roles), rows)


async def remove(tx: Transaction, name: str) -> None:
    await tx.execute(delete(users).where(users.c.name == name))
