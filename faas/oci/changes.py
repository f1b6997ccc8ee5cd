"""`TagChanges`: which tags came to name another manifest, for whoever acts on it, without knowing the registry.

A queue that survives a crash: a change is written together with the tag, and stands until it is said to be done.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TagChange:
    """`repository:tag` names the manifest or index `digest` since `changed_at` (Unix seconds).

    A later change has a higher `id`; an id is never given twice.
    """

    id: int
    repository: str
    tag: str
    digest: str
    changed_at: float


class TagChanges(Protocol):
    """Read in order by one reader. A tag that is written again with the same digest, or deleted, is no change."""

    async def wait(self) -> None:
        """Return once a change has been written since the last `wait` returned; at once where one has been."""
        ...

    async def read(self, after: int, limit: int) -> list[TagChange]:
        """Changes that are not done, by id, those above `after`."""
        ...

    async def done(self, ids: Collection[int]) -> None:
        """Forget these; no error where one is forgotten already."""
        ...
