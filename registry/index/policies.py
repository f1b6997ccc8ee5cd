"""`Policies`: what holds for the repositories that a pattern fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from faas import patterns
from faas.state.session import Database
from registry.index.remembered import Remembered
from registry.index.tables import policies


@dataclass(frozen=True, slots=True)
class Policy:
    """`public`: pulled without a login. `sparse`: what a manifest names need not be here."""

    public: bool = False
    sparse: bool = False


class Policies(Remembered[Policy]):
    """By pattern (`faas.patterns`)."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, policies, lambda row: Policy(row.public, row.sparse), asdict)

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
