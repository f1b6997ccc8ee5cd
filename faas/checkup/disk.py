"""Room where a folder lies: bytes and inodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from faas.checkup.finding import Finding, finding

FREE_BYTES = 1_073_741_824  # below it a base image and a few functions no longer fit
FREE_INODES = 20_000  # a base image with Node's modules has about as many files
RUN_BYTES = 16 * 1_048_576  # bundles and runtime records of some hundred instances
GIGABYTE = 1_073_741_824


def room(
    check: str, folder: Path, *, least_bytes: int = FREE_BYTES, least_inodes: int = FREE_INODES
) -> Iterator[Finding]:
    """Two lines. The folder need not be there yet."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        found = os.statvfs(there)
    except OSError as error:
        yield finding(check, False, f"{there}: {error.strerror}", "look at this file system")
        return
    free = found.f_bavail * found.f_frsize
    words = f"{free / GIGABYTE:.1f} GB free for {folder}"
    yield finding(check, free >= least_bytes, words, f"make room on {there}: faas image gc, faas image retention")
    if found.f_files:  # btrfs and others make them as they are needed, and tell of none
        fine = found.f_favail >= least_inodes
        yield finding(f"{check} inodes", fine, f"{found.f_favail:,} free", f"remove small files on {there}")
