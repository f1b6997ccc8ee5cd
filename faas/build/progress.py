"""What a push tells while it works: stages with times, and a bar for each layer. Whoever shows it decides how."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what happens during a push."""

    def stage(self, name: str) -> None:
        """A new stage begins; the one before has ended."""
        ...

    def layer(self, digest: str, description: str, done: int, total: int, state: str) -> None:
        """`state` is exists | mounted | uploading | done; `done` and `total` are bytes."""
        ...

    def line(self, text: str) -> None:
        """Output of a tool that is part of the build."""
        ...


class Quiet:
    """Nobody looks."""

    def stage(self, name: str) -> None: ...

    def layer(self, digest: str, description: str, done: int, total: int, state: str) -> None: ...

    def line(self, text: str) -> None: ...
