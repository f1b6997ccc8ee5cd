"""What this process may have: descriptors, and memory for all instances beside what the machine has."""

from __future__ import annotations

import resource
from pathlib import Path

from faas.checkup.finding import Finding, finding

FILES_LEAST = 8192  # an instance costs about eight, and a fifth of them is for each listener's connections
MEGABYTE = 1_048_576
SHARE_MOST = 0.95  # of the machine's memory: the kernel, the server and the file cache need the rest


def open_files() -> Finding:
    """Of this process; the hard limit, which the server takes at its start."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    fine = hard == resource.RLIM_INFINITY or hard >= FILES_LEAST
    words = "any number" if hard == resource.RLIM_INFINITY else f"{hard:,} at most"
    return finding("open files", fine, words, "raise it: LimitNOFILE= in the unit, or ulimit -Hn", needed=False)


def memory(budget_bytes: int, meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """The budget of all instances, and what this machine has."""
    total = _kilobytes(meminfo, "MemTotal") * 1024
    words = f"{budget_bytes // MEGABYTE} MB for all instances, of {total // MEGABYTE} MB"
    fine = not total or budget_bytes <= total * SHARE_MOST
    return finding("memory budget", fine, words, "lower memory_budget: the server needs some too", needed=False)


def _kilobytes(meminfo: Path, name: str) -> int:
    try:
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(rows[name].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        return 0
