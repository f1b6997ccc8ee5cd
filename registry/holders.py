"""`Holders`: who still needs an image. The registry owns the port; whoever deploys images answers it.

Who is about to need one says so before reading its manifest from the store (`registry.source`), and a delete takes the
manifest's turn before it asks: so it hears of them, or they find nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from registry.index.index import Index


class Holders(Protocol):
    """What must not be deleted. If the answer fails, nothing is deleted."""

    async def held(self) -> Mapping[str, Sequence[str]]:
        """Image (`repository@digest`) → names of its holders, such as `hello@v7`."""
        ...


async def holders_of(
    holders: Holders | None, index: Index, repository: str, digest: str, below: Iterable[str] = ()
) -> list[str]:
    """Who needs this manifest: itself, one of those `below` it, or an index that names it; sorted.

    Those of this repository: who runs the same image from another one is told to nobody here, and needs nothing here.
    """
    if holders is None:
        return []
    held = await holders.held()
    above = await index.parents(repository, digest)
    images = [f"{repository}@{wanted}" for wanted in (digest, *below, *above)]
    return sorted({name for image in images for name in held.get(image, ())})


async def held_digests(holders: Holders | None) -> frozenset[str]:
    """What a collection must leave: by digest alone, since a name can be written in more than one way."""
    return frozenset() if holders is None else frozenset(image.partition("@")[2] for image in await holders.held())
