"""`ImageHolds`: images that deploys on their way need, before a revision names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from gateway.images import Images


class ImageHolds:
    """Iterating gives the images that are held."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._deploying: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        return iter(self._deploying)

    @asynccontextmanager
    async def of(self, image: str) -> AsyncIterator[None]:
        """The registry is not to delete `image` before a revision names it. It is looked for once more, held: a delete
        may have come before that. Raises ImageUnusable."""
        self._deploying[image] += 1
        try:
            await self._images.find(image)
            yield
        finally:
            self._deploying[image] -= 1
            if not self._deploying[image]:
                del self._deploying[image]
