"""API keys: what they open, and the hashes of the secrets that open it. Nobody can read a key back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, insert, select, update

from faas.auth import Principal, Role
from faas.state.session import Transaction
from faas.state.tables import api_key_secrets, api_keys


@dataclass(frozen=True, slots=True)
class Secret:
    """`hash`: `faas.auth.hash_token` of the whole key. Times are Unix seconds; None: it does not end by itself."""

    hash: str
    created_at: float
    expires_at: float | None = None

    def lives(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`id` is a part of each of its secrets. `secrets`: the newest first."""

    id: str
    principal: Principal
    secrets: tuple[Secret, ...]
    created_at: float
    expires_at: float | None = None
    plan: str = ""
    last_used_at: float | None = None

    @property
    def place(self) -> tuple[str, str]:
        return self.principal.namespace, self.principal.name

    def lives(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


async def every(tx: Transaction) -> list[ApiKey]:
    secrets: dict[tuple[str, str], list[Secret]] = {}
    for row in await tx.execute(select(api_key_secrets).order_by(api_key_secrets.c.created_at.desc())):
        secrets.setdefault((row.namespace, row.key), []).append(Secret(row.hash, row.created_at, row.expires_at))
    rows = await tx.execute(select(api_keys).order_by(api_keys.c.namespace, api_keys.c.name))
    return [
        ApiKey(
            row.id,
            Principal(row.name, Role.CALLER, row.namespace, tuple(json.loads(row.functions))),
            tuple(secrets.get((row.namespace, row.name), ())),
            row.created_at,
            row.expires_at,
            row.plan,
            row.last_used_at,
        )
        for row in rows
    ]


async def add(tx: Transaction, key: ApiKey) -> None:
    """Raises Conflict where the name is taken in its namespace."""
    await tx.execute(
        insert(api_keys).values(
            namespace=key.principal.namespace,
            name=key.principal.name,
            id=key.id,
            functions=json.dumps(key.principal.functions),
            plan=key.plan,
            created_at=key.created_at,
            expires_at=key.expires_at,
        )
    )
    await put_secrets(tx, key)


async def put_secrets(tx: Transaction, key: ApiKey) -> None:
    """Make `key.secrets` all that it has."""
    namespace, name = key.place
    mine = (api_key_secrets.c.namespace == namespace, api_key_secrets.c.key == name)
    await tx.execute(delete(api_key_secrets).where(*mine))
    await tx.execute(
        insert(api_key_secrets),
        [
            {
                "namespace": namespace,
                "key": name,
                "hash": s.hash,
                "created_at": s.created_at,
                "expires_at": s.expires_at,
            }
            for s in key.secrets
        ],
    )


async def put_plan(tx: Transaction, key: ApiKey) -> None:
    namespace, name = key.place
    mine = (api_keys.c.namespace == namespace, api_keys.c.name == name)
    await tx.execute(update(api_keys).where(*mine).values(plan=key.plan))


async def used(tx: Transaction, times: Mapping[str, float]) -> None:
    """Write when keys were last used: id → Unix seconds."""
    rows: Sequence[Mapping[str, object]] = [{"one": one, "at": at} for one, at in times.items()]
    await tx.execute(
        update(api_keys).where(api_keys.c.id == bindparam("one")).values(last_used_at=bindparam("at")), rows
    )


async def remove(tx: Transaction, namespace: str, name: str) -> None:
    await tx.execute(delete(api_keys).where(api_keys.c.namespace == namespace, api_keys.c.name == name))
