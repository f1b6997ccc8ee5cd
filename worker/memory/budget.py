"""How much memory all instances may have together: the setting, or what the machine has less a headroom."""

from __future__ import annotations

import contextlib
from pathlib import Path

from faas.errors import InvalidInput, Unavailable
from faas.settings import MEMORY_BUDGET_LEAST
from worker.memory.meminfo import kilobytes

MEGABYTE = 1_048_576
HEADROOM_SHARE = 0.1  # of the machine: for the server, the kernel and the file cache
HEADROOM_LEAST = 512 * MEGABYTE


def budget(setting_mb: int, machine: int) -> int:
    """Bytes, from the setting `memory_budget` (MB; 0: not set) and the machine's memory in bytes.

    Raises InvalidInput where the setting is more than there is, Unavailable where there is not enough for one function.
    """
    if setting_mb * MEGABYTE > machine:
        raise InvalidInput(
            f"memory_budget is {setting_mb} MB, and this machine has {machine // MEGABYTE} MB for us",
            hint="lower it, or leave it out",
        )
    if setting_mb:
        return setting_mb * MEGABYTE
    left = machine - max(round(machine * HEADROOM_SHARE), HEADROOM_LEAST)
    if left < MEMORY_BUDGET_LEAST * MEGABYTE:
        raise Unavailable(
            f"this machine's {machine // MEGABYTE} MB of memory are too little: "
            f"{HEADROOM_LEAST // MEGABYTE} MB stay with the server",
            hint="set memory_budget to what functions may have",
        )
    return left


def machine_memory(root: Path = Path("/")) -> int:
    """Blocking, some file reads. Bytes that we may use: the machine's, or our own cgroup's limit where smaller."""
    return min([_installed(root / "proc/meminfo"), *_limits(root)])


def _installed(meminfo: Path) -> int:
    total = kilobytes(meminfo.read_text()).get("MemTotal")
    if total is None:
        raise Unavailable(f"{meminfo} does not say how much memory there is", hint="set memory_budget")
    return total * 1024


def _limits(root: Path) -> list[int]:
    """The limits of our own cgroup and of those above it, on cgroup v1 and v2."""
    found: list[int] = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, file = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):  # absent at the top; "max" is no number and no limit
                found.append(int((folder / file).read_text()))
            if folder == top:
                break
    return found
