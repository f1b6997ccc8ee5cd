"""Processes of this machine, which come and go while they are looked at."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children(pid: int, command: str = "") -> list[int]:
    """Of all its threads; those that have `command` in their command line."""
    found = list[int]()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            for child in (task / "children").read_text().split():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if command.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.append(int(child))
    return found


def zombies(pid: int) -> list[str]:
    """What /proc/PID/stat says of each child that has ended and was not asked for yet."""
    rows = list[str]()
    for child in children(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rows.append(Path(f"/proc/{child}/stat").read_text())
    return [row for row in rows if ") Z" in row]
