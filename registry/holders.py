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
        """Manifest digest → names of its holders, such as `function hello v7`."""
        ...


async def holders_of(
    holders: Holders | None, index: Index, repository: str, digest: str, below: Iterable[str] = ()
) -> list[str]:
    """Who needs this manifest: itself, one of those `below` it, or an index that names it; sorted."""
    if holders is None:
        return []
    held = await holders.held()
    above = await index.parents(repository, digest)
    return sorted({name for wanted in (digest, *below, *above) for name in held.get(wanted, ())})
