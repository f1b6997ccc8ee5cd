"""A canary as the control API's answers show it."""

from __future__ import annotations

from typing import Any

from gateway.control.operations import stamp
from gateway.edge.canary.rule import Canary


def shown(canary: Canary) -> dict[str, Any]:
    """`ended_at` and `reason` say when and why it was taken back."""
    return {
        "weights": canary.weights,
        "sticky": canary.sticky,
        "override": canary.override,
        "rollback": str(canary.limits or ""),
        "began_at": stamp(canary.began_at),
        "ended_at": stamp(canary.ended_at),
        "reason": canary.reason,
    }
