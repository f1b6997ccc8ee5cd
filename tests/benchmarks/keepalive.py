"""Learned windows of unused instances beside fixed ones, on simulated days: cold starts and idle memory.

Nothing runs but the decisions: `python -m tests.benchmarks.keepalive` needs no root and no container runtime.
"""

from __future__ import annotations

import sys

from tests.benchmarks.measure import Report, Row, ratio
from tests.support.simulated_day import MIX, STEP, Outcome, compare

DAYS = 3
HOUR = 3600.0
FIXED, LEARNED = "fixed 10 min", "learned"
POLICIES: dict[str, float | None] = {FIXED: 600.0, "fixed 5 min": 300.0, LEARNED: None}
METHOD = (
    "24 simulated hours of each function of `tests/support/simulated_day.py`, one seed a day, ticks"
    f" {STEP:g} s apart; the collector's and the autoscaler's own code decides. Idle: instances without an invocation,"
    " by their memory. One value a day."
)


def measure(rounds: int | None) -> Report:
    days = [compare(seed, POLICIES) for seed in range(1, (rounds or DAYS) + 1)]

    def row(kind: str, policy: str, what: str) -> Row:
        found = [day[kind, policy] for day in days]
        values = [one.cold if what == "cold starts" else one.idle / HOUR for one in found]
        return Row(f"{kind}, {policy}: {what}", values, "a day" if what == "cold starts" else "GB·h")

    rows = [
        row(kind, policy, what) for kind in (*MIX, "all") for policy in POLICIES for what in ("cold starts", "idle")
    ]
    figures = [
        ratio(f"{kind}: {what}, learned ÷ fixed 10 min", row(kind, LEARNED, what), row(kind, FIXED, what), must)
        for kind, must in (*((kind, None) for kind in MIX), ("all", 1.0))
        for what in ("cold starts", "idle")
    ]
    return Report("Learned windows", METHOD, rows, figures)


def table(seed: int) -> str:
    """One day as a page has it."""
    found = compare(seed, POLICIES)

    def cells(one: Outcome) -> str:
        return f"{one.cold:,} / {one.idle / HOUR:.1f}"

    lines = ["| calls | " + " | ".join(POLICIES) + " |", "|---|" + "---:|" * len(POLICIES)]
    for kind in (*MIX, "all"):
        columns = " | ".join(cells(found[kind, policy]) for policy in POLICIES)
        lines.append(f"| {kind}, {found[kind, LEARNED].calls:,} | {columns} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
