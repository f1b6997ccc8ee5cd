"""`Template`: bytes that are the same each time but for a few places."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Self

MOST = 10  # values: one digit
_PREFIX = secrets.token_hex(16)  # nobody can put it into a request on purpose
_BYTES = _PREFIX.encode()


def mark(number: int) -> str:
    """The text that stands for value `number` in what a template is made of: hexadecimal digits."""
    return f"{_PREFIX}{number}"


class Template:
    """Made of bytes with marks in them; `filled` puts values in their places."""

    __slots__ = ("_one", "_pieces", "_places")

    def __init__(self, text: bytes) -> None:
        first, *others = text.split(_BYTES)
        self._pieces = [first]
        self._places: list[tuple[int, int]] = []  # (which piece, which value)
        for other in others:
            self._places.append((len(self._pieces), other[0] - 48))
            self._pieces += (b"", other[1:])
        self._one = self._only_place()

    def with_values(self, values: Mapping[int, bytes]) -> Self:
        """The same with these in their places for good."""
        made = type(self).__new__(type(self))
        made._pieces = self._pieces.copy()
        made._places = []
        for piece, value in self._places:
            if value in values:
                made._pieces[piece] = values[value]
            else:
                made._places.append((piece, value))
        made._one = made._only_place()
        return made

    def _only_place(self) -> tuple[bytes, int, bytes] | None:
        """What stands before it, which value it is of, and what stands behind it."""
        if len(self._places) != 1:
            return None
        [(at, value)] = self._places
        return b"".join(self._pieces[:at]), value, b"".join(self._pieces[at + 1 :])

    def filled(self, values: Sequence[bytes]) -> bytes:
        if self._one is not None:
            before, value, behind = self._one
            return b"%b%b%b" % (before, values[value], behind)
        pieces = self._pieces.copy()
        for piece, value in self._places:
            pieces[piece] = values[value]
        return b"".join(pieces)
