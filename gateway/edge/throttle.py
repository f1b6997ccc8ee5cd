"""`Rate` and `Buckets`: token buckets, as pure decisions. Times are of one monotonic clock, in seconds.

A bucket is one number, the time at which it is full again: a full bucket needs none, and is not kept.

No client makes the table grow beyond its bound, nor has anybody's bucket forgotten: one that is not full is never
dropped. While the table is full, newcomers share a fixed number of buckets. So who comes with more addresses than the
table holds gets no more for it than these few buckets give; known clients notice nothing, and new ones have to share
with him until buckets are full again, which takes `burst / rate` seconds at most.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

MOST = 16_384  # buckets of one table: about 4 MB
SHARED = 64  # of those that find no room
LOOKED_AT = 4  # buckets that each newcomer looks at, to drop those that are full
_ROUNDING = 1e-9  # seconds: sums of floating-point numbers


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` tokens come in, `burst` are kept at most; a request takes one."""

    per_second: float
    burst: int

    def wait(self, full_at: float, now: float) -> float:
        """Seconds until a request may come in; 0: now."""
        missing = full_at - now - (self.burst - 1) / self.per_second
        return missing if missing > _ROUNDING else 0.0

    def after(self, full_at: float, now: float) -> float:
        """The bucket once a request has come in."""
        return max(full_at, now) + 1 / self.per_second


def retry_after(wait: float) -> int:
    """Whole seconds, as `Retry-After` has them: never too early."""
    return max(1, math.ceil(wait))


class Buckets:
    """One bucket for each who asks; all have the same rate."""

    def __init__(self, rate: Rate, *, most: int = MOST) -> None:
        self.rate = rate
        self._most = most
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._shared = [0.0] * SHARED

    def wait(self, who: str, now: float) -> float:
        """Seconds until a request of `who` may come in; 0: now. Nothing is taken."""
        full_at = self._full_at.get(who)
        if full_at is None:
            self._make_room(now)
            full_at = 0.0 if len(self._full_at) < self._most else self._shared[hash(who) % SHARED]
        return self.rate.wait(full_at, now)

    def take(self, who: str, now: float) -> None:
        """A request of `who` comes in. Call it where `wait` has said 0, at the same `now`."""
        full_at = self._full_at.get(who)
        if full_at is not None or len(self._full_at) < self._most:
            self._full_at[who] = self.rate.after(full_at or 0.0, now)
        else:
            slot = hash(who) % SHARED  # Python's own is seeded: nobody chooses whom to share with
            self._shared[slot] = self.rate.after(self._shared[slot], now)

    def __len__(self) -> int:
        return len(self._full_at)

    def _make_room(self, now: float) -> None:
        """Look at the next few in turn: full ones go, others go to the end of the line."""
        for _ in range(min(LOOKED_AT, len(self._full_at))):
            who = next(iter(self._full_at))
            if self._full_at[who] <= now:
                del self._full_at[who]
            else:
                self._full_at.move_to_end(who)
