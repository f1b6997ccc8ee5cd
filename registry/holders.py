"""`Holders`: who still needs an image. The registry owns the port; whoever deploys images answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Holders(Protocol):
    """What must not be deleted. If the answer fails, nothing is deleted."""

    async def held(self) -> Mapping[str, Sequence[str]]:
        """Manifest digest → names of its holders, such as `function hello v7`."""
        ...
