"""`Rules`: retention rules by pattern."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from faas import patterns
from faas.oci.reference import BASES
from faas.state.session import Database
from registry.index.remembered import Remembered
from registry.index.tables import retention_rules
from registry.rules import Rule


class Rules(Remembered[Rule]):
    """Of the rules whose patterns fit a repository, the one that says most holds, and no other. A pattern as wide as
    `*` does not mean the runtime bases: every push of a function needs them as they are."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, retention_rules, _read, _written)

    def of(self, repository: str) -> Rule:
        is_base = repository.startswith(BASES)
        meant = (pattern for pattern in self._known if not is_base or pattern.startswith(BASES))
        pattern = patterns.best(meant, repository)
        return Rule() if pattern is None else self._known[pattern]


def _read(row: Row[Any]) -> Rule:
    movable = tuple(json.loads(row.movable))
    return Rule(row.keep_last, row.keep_days, row.untagged_days, row.immutable, movable)


def _written(rule: Rule) -> dict[str, Any]:
    return {**asdict(rule), "movable": json.dumps(rule.movable)}
