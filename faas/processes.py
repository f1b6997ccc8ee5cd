"""How many processes serve the public port (`--processes`), and what each of them may have of what there is once."""

from __future__ import annotations

import os

from faas.errors import InvalidInput


def check_processes(processes: int, *, tls: bool) -> None:
    """Raises InvalidInput."""
    most = 2 * (os.cpu_count() or 1)
    if not 1 <= processes <= most:
        raise InvalidInput(f"processes must be 1 to {most}, twice this machine's CPUs, not {processes}")
    if processes > 1 and tls:
        raise InvalidInput(
            "more than one of --processes is not offered with TLS",
            hint="drop --processes, or have a proxy in front of it end TLS",
        )


def of_one_client(per_address: int, processes: int) -> tuple[int, int]:
    """How many connections of one client a lane process keeps, and how many the main process: never more than
    `per_address` together. What a lane has beyond its part becomes the main process's, which has the largest; 0: any
    number."""
    if not per_address or processes < 2:
        return 0, per_address
    lane = max(1, per_address // (2 * processes))
    return lane, max(1, per_address - (processes - 1) * lane)
