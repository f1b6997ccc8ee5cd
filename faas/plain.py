"""Specs as plain data: what JSON and TOML can say, and what their readers take back."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from faas.checks import format_duration


def shallow(value: Any) -> dict[str, Any]:
    """A dataclass's fields, not copied."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def plain(value: Any) -> Any:
    """What has a `to_dict` of its own says itself how it is written."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, timedelta):
        return format_duration(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {k: plain(v) for k, v in shallow(value).items()}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return value


def written(value: Any) -> dict[str, Any]:
    """A dataclass's fields that are not at their defaults, as plain data."""
    found = {}
    for one in dataclasses.fields(value):
        held = getattr(value, one.name)
        default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
        if held != default:
            found[one.name] = plain(held)
    return found
