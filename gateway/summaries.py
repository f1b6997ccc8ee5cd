"""`Summaries`: functions as lists show them, each as its JSON text, made anew only where what it tells is another."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MOST = 10_000  # functions; with more none is remembered for long


class Summaries:
    """A text is known by what it was made of, so nobody has to say that something changed."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[object, ...], bytes]] = {}  # by the function's label

    def text(self, label: str, facts: tuple[object, ...], make: Callable[[], dict[str, Any]]) -> bytes:
        """What `make` gives, which depends on `facts` alone."""
        kept = self._kept.get(label)
        if kept is not None and kept[0] == facts:
            return kept[1]
        if kept is None and len(self._kept) >= MOST:
            self._kept.clear()
        text = json.dumps(make()).encode()
        self._kept[label] = (facts, text)
        return text
