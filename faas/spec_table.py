"""Reads one table of plain data (from TOML, JSON or flags) key by key: what is unknown or out of range is
a `SpecError` that names the key, what is allowed, and the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from faas.checks import Check
from faas.errors import SpecError

SHOWN = 200  # characters of a wrong value


def table(
    where: str,
    value: Any,
    checks: Mapping[str, Check],
    nested: Collection[str] = (),
    *,
    optional: Collection[str] = (),
) -> dict[str, Any]:
    """The checked values of the table at `where` ("" is the whole). `nested`: keys that the caller reads by itself;
    `optional`: texts that may be left empty. Raises SpecError."""
    if not isinstance(value, Mapping):
        raise SpecError(f"{where or 'the specification'} must be a table", key=where)
    prefix = f"{where}." if where else ""
    checked = {}
    for key, written in value.items():
        if key in nested:
            continue
        if key not in checks:
            near = difflib.get_close_matches(key, [*checks, *nested], 1)
            raise SpecError(
                f"unknown key {prefix}{key}",
                key=prefix + key,
                hint=f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join([*checks, *nested])}",
            )
        if written == "" and key in optional:
            continue
        try:
            checked[key] = checks[key](written)
        except ValueError as error:
            raise SpecError(f"{prefix}{key} must be {error}, not {_shown(written)}", key=prefix + key) from None
    return checked


def _shown(value: Any) -> str:
    """Python itself refuses to write out a number of more than 4,300 digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def tables(where: str, value: Any, checks: Mapping[str, Check], required: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of an array of tables, each checked; `required` are keys that each must have. Raises SpecError."""
    if not isinstance(value, list | tuple):
        raise SpecError(f"{where} must be an array of tables: [[{where}]]", key=where)
    rows = [table(f"{where}[{i}]", row, checks) for i, row in enumerate(value)]
    for i, row in enumerate(rows):
        for key in required:
            if key not in row:
                raise SpecError(f"{where}[{i}] needs {key}", key=f"{where}[{i}]")
    return rows
