"""Host names that routes and APIs answer to: `api.example.com`, or `*.example.com` for every name one label below."""

from __future__ import annotations

import re
from typing import Any

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")


def host(value: Any) -> str:
    """A check of `faas.checks`' kind; in lower case."""
    text = value.lower() if isinstance(value, str) else ""
    bare = text.removeprefix("*.")
    if len(text) > 253 or not _HOST.fullmatch(text) or "." not in bare or bare.rpartition(".")[2].isdigit():
        raise ValueError('a host name such as "api.example.com" or "*.example.com", without a port')
    return text


def above(name: str) -> str:
    """The wildcard that takes `name`: one label is free."""
    return "*." + name.partition(".")[2]


def overlap(one: str, other: str) -> bool:
    """Whether some name is taken by both."""
    return one == other or above(one) == other or one == above(other)
