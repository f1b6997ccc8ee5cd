"""`Staleness`: whether a function's image stands on a runtime base that this machine would make otherwise by now, since
its interpreter or a library has been updated."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from faas.errors import FaasError, ImageUnusable
from faas.oci import labels
from faas.protocol import Revision

if TYPE_CHECKING:
    from gateway.gateway import RuntimeBases
    from gateway.images import Images

IMAGES = 10_000  # whose base is remembered: an image never changes
FRESH_SECONDS = 30.0  # what the machine would make is looked at again after that


class Staleness:
    """`clock` gives seconds, monotonic."""

    def __init__(self, images: Images, runtimes: RuntimeBases, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._images = images
        self._runtimes = runtimes
        self._clock = clock
        self._bases: OrderedDict[str, str] = OrderedDict()  # image → its base's reference, "" for none
        self._now: dict[str, tuple[float, str]] = {}  # base without digest → (when looked, reference or "")
        self._turn = asyncio.Lock()

    async def of(self, revision: Revision) -> str:
        """Why it is stale, in words; "" where it is not, or where that cannot be said."""
        if not revision.spec.runtime:
            return ""
        try:
            base = await self.base_of(revision.image)
            if not base:
                return ""
            named, _, digest = base.partition("@")
            current = await self._current(named)
        except FaasError:
            return ""
        if current == base:
            return ""
        return f"{named.removeprefix('runtime/')} base {digest[:19]} is older than what this machine has now"

    async def base_of(self, image: str) -> str:
        """The reference of the base that `image` (`repository@digest`) was pushed on; "" for none. Raises FaasError."""
        known = self._bases.get(image)
        if known is not None:
            self._bases.move_to_end(image)
            return known
        try:
            config = await self._images.config(image)
        except ImageUnusable:
            return ""  # it is gone: that is another trouble
        base = config.labels.get(labels.BASE, "") if config is not None else ""
        self._bases[image] = base
        if len(self._bases) > IMAGES:
            self._bases.popitem(last=False)
        return base

    def forget(self) -> None:
        """A base was made: look again."""
        self._now.clear()

    async def _current(self, named: str) -> str:
        async with self._turn:  # one looks, the others read
            at, reference = self._now.get(named, (-FRESH_SECONDS, ""))
            if self._clock() - at >= FRESH_SECONDS:
                reference = await self._runtimes.current(named)
                self._now[named] = (self._clock(), reference)
            return reference
