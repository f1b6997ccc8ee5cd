"""Whether the whole machine's memory gets short (proc(5), /proc/meminfo): then nothing is kept ready for later."""

from __future__ import annotations

from pathlib import Path

LEAST_SHARE = 0.1  # of the machine's: with less than that available it is short


def is_short() -> bool:
    """The kernel's answer, not a disk's: it blocks nobody."""
    return says_short(Path("/proc/meminfo").read_text())


def says_short(meminfo: str) -> bool:
    """By the text of the file."""
    rows = (row.partition(":") for row in meminfo.splitlines())
    kilobytes = {name: int(value.split()[0]) for name, _, value in rows if value.split()}
    return kilobytes.get("MemAvailable", 0) < LEAST_SHARE * kilobytes.get("MemTotal", 0)
