"""What a process and a server hold at the moment, as numbers: for tests in which they must come back to the same."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.leftovers import on_this_machine
from tests.support.processes import children

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Standing:
    """`resident_kb` is the processes' memory; `machine` counts what carries one of the server's marks.

    `views` of the layers are mounts too: those that are made ahead, and those of stems. `owners` are files too: of each
    range of ids that was ever in use beside others its user namespace is kept.
    """

    files: int
    namespaces: int
    threads: int
    resident_kb: int
    views: int
    owners: int
    machine: Mapping[str, int]

    def beyond(self, before: Standing, slack: int = 2) -> dict[str, str]:
        """What there is more of than `before`, by more than `slack`; memory, views and owners are another matter."""
        now, then = self._counts(), before._counts()
        return {name: f"{then[name]} → {now[name]}" for name in now if now[name] > then[name] + slack}

    def _counts(self) -> dict[str, int]:
        return {"files": self.files, "namespaces": self.namespaces, "threads": self.threads, **self.machine}


def family(pid: int) -> list[int]:
    """A server's processes: its own, and its launcher's where it has one."""
    return [pid, *children(pid, "worker.launcher")]


def standing(pids: Sequence[int], *marks: str) -> Standing:
    """Of these processes together, and of what carries one of `marks` on this machine (a server's id, its folder)."""
    links = [_link(entry) for pid in pids for entry in Path(f"/proc/{pid}/fd").iterdir()]
    found = {
        kind: [row for row in rows if any(mark in row for mark in marks)] for kind, rows in on_this_machine().items()
    }
    views = [row for row in found["mounts"] if "/ids/" in row]
    owners = sum(link.startswith("user:") for link in links)
    return Standing(
        len(links) - owners,
        sum(link.startswith("net:") for link in links),
        sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
        resident_kb(pids),
        len(views),
        owners,
        {kind: len(rows) - len(views) * (kind == "mounts") for kind, rows in found.items()},
    )


def resident_kb(pids: Sequence[int]) -> int:
    """Memory of these processes together."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * PAGE_BYTES // 1024


def own_standing(*marks: str) -> Standing:
    """Of this process; its running asyncio tasks count as the server's things do."""
    gc.collect()
    now = standing([os.getpid()], *marks)
    return replace(now, machine={**now.machine, "tasks": len(asyncio.all_tasks())})


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""
