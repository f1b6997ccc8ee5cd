"""What the servers of one machine share: the folders above their own, and names of which each is one server's."""

from __future__ import annotations

import socket
from pathlib import Path

TRIES = 100


def make(folder: Path, mode: int = 0o777) -> None:
    """Blocking. One of this server's own, and those above it where they are not there. Raises OSError.

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


def claim(name: str) -> socket.socket | None:
    """This name, until what it gives is closed or this process ends, however it ends; None where another server of this
    network namespace has it."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(f"\0faas-{name}")
    except OSError:
        held.close()
        return None
    return held
