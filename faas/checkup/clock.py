"""The clock and the time zones: what the kernel and our own files say of them, without a network."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from faas.checkup.finding import Finding, finding

OLDEST_TIME = 1_700_000_000  # Unix time; a clock before it (November 2023) was never set
AHEAD_SECONDS = 120.0  # a file may be a little newer than now, where another machine's clock wrote it
TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
TIMEX_BYTES = 256  # struct timex has 208
ZONE = "Europe/Berlin"  # one that every copy of the data has, and that no default stands in for


def clock(files: Iterable[Path], now: float | None = None) -> Iterator[Finding]:
    """`files`: those that were written last, whose times a clock that went back would be before."""
    now = time.time() if now is None else now
    words = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    newest = max(filter(None, map(_written, files)), default=0.0)
    if now < OLDEST_TIME:
        yield finding("clock", False, words, "set the clock: timedatectl set-ntp on")
    elif newest > now + AHEAD_SECONDS:
        behind = f"{words}, {newest - now:.0f} s before the newest file of ours"
        yield finding("clock", False, behind, "the clock went back: timedatectl set-ntp on; schedules follow it")
    else:
        yield finding("clock", True, words, "")
    known = synchronized()
    if known is not None:
        told = "synchronized" if known else "nobody keeps it right"
        yield finding("clock sync", known, told, "apt-get install systemd-timesyncd, or chrony", needed=False)


def synchronized() -> bool | None:
    """What the kernel has been told of the clock (adjtimex(2)); None where it does not say."""
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def zones() -> Finding:
    """Whether schedules' time zones are known here."""
    try:
        there = ZoneInfo(ZONE) is not None
    except (ZoneInfoNotFoundError, OSError):
        there = False
    return finding("time zones", there, "there" if there else f"{ZONE} is not known", "apt-get install tzdata")


def _written(file: Path) -> float | None:
    try:
        return os.stat(file, follow_symlinks=False).st_mtime  # noqa: PTH116 - a link's own time
    except OSError:
        return None
