"""How it is measured: rounds that interleave, medians, and ratios of medians taken in the same run. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


def interleaved(methods: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Every method once per round. The first round warms up and is thrown away; each begins with another method."""
    names = list(methods)
    found: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            value = methods[name]()
            if number:
                found[name].append(value)
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """What one method gave, in `unit`."""

    name: str
    values: Sequence[float]
    unit: str = "ms"

    @property
    def p50(self) -> float:
        return statistics.median(self.values)

    @property
    def p95(self) -> float:
        """Nearest rank: a value that was measured."""
        return sorted(self.values)[math.ceil(0.95 * len(self.values)) - 1]

    @property
    def least(self) -> float:
        return min(self.values)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that has a bound. `must` and `goal` are upper bounds, or lower ones where `more_is_better`."""

    name: str
    value: float
    must: float | None = None
    goal: float | None = None
    unit: str = "×"
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """`goal`, `must` or `SHORT`: the best bound that holds; empty where there is none."""
        if self.must is None and self.goal is None:
            return ""
        if self._holds(self.goal):
            return "goal"
        return "must" if self._holds(self.must) else "SHORT"

    def _holds(self, bound: float | None) -> bool:
        if bound is None:
            return False
        return self.value >= bound if self.more_is_better else self.value <= bound


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark's results; `method` says under which load they were taken."""

    title: str
    method: str
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def ratio(name: str, ours: Row, theirs: Row, must: float | None = None, goal: float | None = None) -> Figure:
    """Median ÷ median."""
    return Figure(name, ours.p50 / theirs.p50, must, goal)
