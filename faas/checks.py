"""Checks of single values: each takes what was written and returns what is stored, or raises ValueError with the
words that follow "must be". Used by `faas.spec`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, cast

DURATION_PATTERN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
DURATION_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION_WORDS = 'a duration such as "30s", "5m" or "1h30m"'
ENV_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ENV_BYTES = 4096  # all names and values together, as Lambda

Check = Callable[[Any], Any]


def parse_duration(text: object) -> timedelta:
    """A duration such as "5m", "1h30m", "250ms"; a bare number is seconds. Raises ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return _span(text)
    if not isinstance(text, str) or not text:
        raise ValueError(DURATION_WORDS)
    if text.isdecimal():
        return _span(float(text))
    parts = DURATION_PATTERN.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        raise ValueError(DURATION_WORDS)
    return _span(sum(float(number) * DURATION_SECONDS[unit] for number, unit in parts))


def _span(seconds: float) -> timedelta:
    """A number can be infinite, none, or of more days than a timedelta has."""
    try:
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise ValueError(DURATION_WORDS) from None


def format_duration(value: timedelta) -> str:
    """The shortest exact form that `parse_duration` takes: `5m`, `90s`, `250ms`."""
    milliseconds = round(value.total_seconds() * 1000)
    for unit in ("d", "h", "m", "s"):
        size = round(DURATION_SECONDS[unit] * 1000)
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


def rough_duration(seconds: float) -> str:
    """For people: `14m33s`, `3h58m`, `45s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def integer(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"a number from {low} to {high}")
        return float(value)

    return check


def duration(low: timedelta, high: timedelta) -> Check:
    def check(value: Any) -> timedelta:
        span = parse_duration(value)
        if not low <= span <= high:
            raise ValueError(f"a duration from {format_duration(low)} to {format_duration(high)}")
        return span

    return check


def duration_or(words: type[enum.StrEnum], low: timedelta, high: timedelta) -> Check:
    """A duration, or one of these words."""
    as_duration = duration(low, high)

    def check(value: Any) -> timedelta | enum.StrEnum:
        if isinstance(value, str) and value in set(words):
            return words(value)
        try:
            return cast("timedelta", as_duration(value))
        except ValueError as error:
            raise ValueError(" or ".join([str(error), *(f'"{word}"' for word in words)])) from None

    return check


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or "\x00" in value or len(value) > 4096:
        raise ValueError("a text of at most 4,096 characters")
    return value


def matching(pattern: re.Pattern[str], words: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(words)
        return value

    return check


def choice(kind: type[enum.StrEnum]) -> Check:
    def check(value: Any) -> enum.StrEnum:
        try:
            return kind(value)
        except ValueError:
            raise ValueError("one of " + ", ".join(kind)) from None

    return check


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) > 256:
        raise ValueError("a list of at most 256 texts")
    return tuple(text(item) for item in value)


def path(value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")) or "\x00" in value:
        raise ValueError("a path that starts with /")
    return value


def workdir(value: Any) -> str:
    folder = path(value)
    # A working directory below these was how runc's leaked descriptors were reached (CVE-2024-21626).
    below = any(folder == root or folder.startswith(root + "/") for root in ("/proc", "/sys", "/dev"))
    if below or ".." in folder.split("/"):
        raise ValueError("a path outside /proc, /sys and /dev, without ..")
    return folder


def env(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("a table of names and texts")
    for name, content in value.items():
        if not ENV_NAME_PATTERN.fullmatch(name):
            raise ValueError(f"a table of names ({name!r} is none: letters, digits and _, not first a digit)")
        if not isinstance(content, str) or "\x00" in content:
            raise ValueError(f"a table of texts ({name} is none: put quotes around it)")
    if sum(len(k.encode()) + len(v.encode()) for k, v in value.items()) > ENV_BYTES:
        raise ValueError(f"at most {ENV_BYTES} bytes, names and values together")
    return dict(value)


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a table")
    return dict(value)


def cron(value: Any) -> str:
    from faas.cron import check_expression  # late: croniter is not needed to read most specs

    return check_expression(value)


def timezone(value: Any) -> str:
    from faas.cron import check_timezone

    return check_timezone(value)
