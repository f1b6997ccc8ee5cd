"""`Policies`: what holds for the repositories that a pattern fits. Few rows, answered from memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from faas import patterns
from faas.background import Background
from faas.state.session import Database
from registry.index.tables import policies

CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Policy:
    """`public`: pulled without a login. `sparse`: what a manifest names need not be here."""

    public: bool = False
    sparse: bool = False


class Policies:
    """`load` before use.

    Changes go on to their end where their caller has gone, so that memory and database know the same.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._changes = Background()
        self._known: dict[str, Policy] = {}

    async def load(self) -> None:
        async with self._database.read() as tx:
            rows = (await tx.execute(select(policies))).all()
        self._known = {row.pattern: Policy(row.public, row.sparse) for row in rows}

    async def close(self) -> None:
        await self._changes.finish(CLOSE_SECONDS)

    def all(self) -> dict[str, Policy]:
        """By pattern, sorted."""
        return dict(sorted(self._known.items()))

    def of(self, repository: str) -> Policy:
        pattern = patterns.best(self._known, repository)
        return Policy() if pattern is None else self._known[pattern]

    def public_by(self, repository: str) -> str | None:
        """The pattern that makes `repository` public; None: it is not."""
        pattern = patterns.best(self._known, repository)
        return pattern if pattern is not None and self._known[pattern].public else None

    @property
    def public(self) -> list[str]:
        """The patterns of what is public, where no other one says more."""
        return [pattern for pattern, policy in self._known.items() if policy.public]

    async def put(self, pattern: str, policy: Policy) -> None:
        await self._changes.complete(self._put(pattern, policy), "changing a policy")

    async def _put(self, pattern: str, policy: Policy) -> None:
        async with self._database.write() as tx:
            row = insert(policies).values(pattern=pattern, **asdict(policy))
            await tx.execute(row.on_conflict_do_update(index_elements=["pattern"], set_=asdict(policy)))
        self._known[pattern] = policy

    async def remove(self, pattern: str) -> bool:
        """Whether it was there."""
        return await self._changes.complete(self._remove(pattern), "removing a policy")

    async def _remove(self, pattern: str) -> bool:
        async with self._database.write() as tx:
            await tx.execute(delete(policies).where(policies.c.pattern == pattern))
        return self._known.pop(pattern, None) is not None
