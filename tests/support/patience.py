"""How long tests wait for what must come: an emulated machine is 20 to 40 times slower, and no less right."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

FACTOR = float(os.environ.get("FAAS_TEST_PATIENCE") or 1)
LOOKS = 20  # of 10 ms, in which nothing comes; a machine that stands still takes but one of them


async def at_rest(value: Callable[[], int], seconds: float = 30) -> int:
    """What `value` is when it no longer changes; not 0."""
    async with asyncio.timeout(seconds * FACTOR):
        looks = seen = 0
        while looks < LOOKS:
            await asyncio.sleep(0.01)
            looks, seen = (looks + 1 if value() == seen != 0 else 0), value()
        return seen
