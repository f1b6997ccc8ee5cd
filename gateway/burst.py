"""How fast one function may grow: a bucket of starts. What it does not hold comes as it fills again; nobody is refused.

Lambda's rule is 1,000 new instances per 10 s: so many at once, then a tenth of them each second.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL_SECONDS = 10.0  # an empty bucket is full again after so long


@dataclass(frozen=True, slots=True)
class Bucket:
    """`starts` that may be made at `at` (seconds, monotonic)."""

    starts: float
    at: float


def filled(bucket: Bucket | None, now: float, burst: int) -> float:
    """What is in it at `now`; None is a full one. Never above `burst`."""
    if bucket is None:
        return float(burst)
    return min(float(burst), bucket.starts + (now - bucket.at) * burst / FULL_SECONDS)


def take(bucket: Bucket | None, wanted: int, now: float, burst: int) -> tuple[int, Bucket]:
    """How many of `wanted` instances may start at `now`, and the bucket after that."""
    there = filled(bucket, now, burst)
    starts = max(0, min(wanted, int(there + 1e-9)))
    return starts, Bucket(there - starts, now)
