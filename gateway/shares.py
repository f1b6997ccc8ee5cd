"""Who may have how much of what all share: pure functions, so that nobody's many starve others."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping


def shares(wanted: Mapping[str, int], held: Mapping[str, int], free: int) -> dict[str, int]:
    """Hand out `free` slots among lanes that could each use so many more than they hold.

    Always to the lane that holds the fewest, and to none more than half of what is free, its own counted in: however
    many slots a few slow functions hold, the next one finds some. A lane that holds none gets one in any case.
    """
    given: Counter[str] = Counter()
    lanes = [(held.get(lane, 0), lane) for lane, count in wanted.items() if count > 0]
    heapq.heapify(lanes)
    while lanes:
        holds, lane = heapq.heappop(lanes)
        if holds and holds + 2 > free:
            break  # nor may those that hold more
        given[lane] += 1
        free -= 1
        if given[lane] < wanted[lane]:
            heapq.heappush(lanes, (holds + 1, lane))
    return dict(given)


def share_of(most: int, held: Mapping[str, int], lane: str, *, alone: bool = False) -> int:
    """How much of `most` `lane` may hold at once: half of what others leave, so that whoever comes next finds some;
    all of it where it is `alone`, nobody else could want any."""
    left = max(0, most - sum(count for one, count in held.items() if one != lane))
    return left if alone else (left + 1) // 2
