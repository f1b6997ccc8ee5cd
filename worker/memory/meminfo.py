"""What the whole machine's memory is, and whether it gets short (proc(5), /proc/meminfo)."""

from __future__ import annotations

from pathlib import Path

LEAST_SHARE = 0.1  # of the machine's: with less than that available it is short


def is_short() -> bool:
    """Then nothing is kept ready for later. The kernel's answer, not a disk's: it blocks nobody."""
    return says_short(Path("/proc/meminfo").read_text())


def says_short(meminfo: str) -> bool:
    """By the text of the file."""
    rows = kilobytes(meminfo)
    return rows.get("MemAvailable", 0) < LEAST_SHARE * rows.get("MemTotal", 0)


def kilobytes(meminfo: str) -> dict[str, int]:
    """Its rows, by name. Some count pages."""
    rows = (row.partition(":") for row in meminfo.splitlines())
    return {name: int(value.split()[0]) for name, _, value in rows if value.split()}
