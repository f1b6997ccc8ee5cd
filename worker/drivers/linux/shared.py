"""What the servers of one machine have in common: folders above their own, which go with the last server. Blocking."""

from __future__ import annotations

from pathlib import Path

TRIES = 100


def make(folder: Path, mode: int = 0o777) -> None:
    """One of this server's own, and those above it where they are not there. Raises OSError.

    Whoever ends takes an empty parent away, which may be just after it was made here; none with a folder in it goes.
    """
    for left in reversed(range(TRIES)):
        try:
            folder.mkdir(mode, parents=True, exist_ok=True)
        except FileNotFoundError:
            if not left:
                raise
        else:
            return
