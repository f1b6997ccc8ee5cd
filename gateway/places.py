"""`Places`: how many of something costly there are at once, and that one caller does not take them all."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from faas.errors import Throttled


class Places:
    """`most` in all, `of_one` of each caller. `what` they are, in words, for whoever finds no place; `reason`,
    `retry_after` and `hint` go with that."""

    def __init__(self, what: str, most: int, of_one: int, *, reason: str, retry_after: int = 1, hint: str = "") -> None:
        self._what = what
        self._most = most
        self._of_one = of_one
        self._reason = reason
        self._retry_after = retry_after
        self._hint = hint
        self._inside: Counter[str] = Counter()

    @contextlib.contextmanager
    def of(self, caller: str) -> Iterator[None]:
        """One of them, until the block ends. Raises Throttled."""
        if self._inside.total() >= self._most:
            raise self._refusal(f"{self._most} {self._what}, and that is all at once")
        if self._inside[caller] >= self._of_one:
            raise self._refusal(f"{self._of_one} {self._what} for {caller}, who gets no more at once")
        self._inside[caller] += 1
        try:
            yield
        finally:
            self._inside[caller] -= 1
            self._inside += Counter()  # without those at 0

    def _refusal(self, words: str) -> Throttled:
        return Throttled(words, reason=self._reason, retry_after=self._retry_after, hint=self._hint)
