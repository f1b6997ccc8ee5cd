"""Answers on stdout in one of three forms: a table for people, JSON, or names for scripts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from faas.cli.failures import visible

Json = dict[str, Any]
Column = tuple[str, Callable[[Json], object]]
F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("table", "json", "name")


def output_option(function: F) -> F:
    """`-o table|json|name`."""
    return click.option(
        "-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True, help="Form of the answer."
    )(function)


def show(output: str, items: Sequence[Json], columns: Sequence[Column], name: Callable[[Json], object]) -> None:
    """Print a list in the form that was asked for; `name` says what stands for an item in the form `name`."""
    if output == "json":
        click.echo(as_json(items))
    elif output == "name":
        for item in items:
            click.echo(visible(str(name(item))))
    else:
        rows = [[_cell(value(item)) for _, value in columns] for item in items]
        for line in table([title for title, _ in columns], rows):
            click.echo(line)


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two blanks between them, titles in bold on a terminal."""
    rows = [list(row) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

    return [click.style(line(titles), bold=True), *(line(row) for row in rows)]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(str(value))


def moment(value: object) -> float | None:
    """A time as the API gives it (ISO 8601 or Unix seconds) as Unix seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value:
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return None
    return None


def age(value: object, now: float | None = None) -> str:
    """How long ago, in its largest unit: `12s`, `5m`, `3h`, `9d`."""
    then = moment(value)
    if then is None:
        return "-"
    seconds = max(0, int((time.time() if now is None else now) - then))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def local_time(value: object) -> str:
    """Local time to the second."""
    then = moment(value)
    return "-" if then is None else datetime.fromtimestamp(then).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def log_time(value: object) -> str:
    """Local time of day with milliseconds and date, as log lines begin."""
    then = moment(value) or 0.0
    stamp = datetime.fromtimestamp(then).astimezone()
    return stamp.isoformat(timespec="milliseconds")


def size(count: float) -> str:
    """`12 B`, `3.4 KB`, `120 MB` (1,024 each)."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1024 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def note(text: str) -> None:
    """Progress, for people: stderr."""
    click.echo(text, err=True)


def at_terminal() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()
