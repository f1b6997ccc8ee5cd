"""`Template`: bytes that are the same each time but for a few places."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Self

MOST = 10  # values: one digit
_PREFIX = secrets.token_hex(16)  # nobody can put it into a request on purpose
_BYTES = _PREFIX.encode()


def mark(number: int) -> str:
    """The text that stands for value `number` in what a template is made of: hexadecimal digits."""
    return f"{_PREFIX}{number}"


class Template:
    """Made of bytes with marks in them; `filled` puts values in their places."""

    __slots__ = ("_format", "_pick", "_pieces", "_values")

    def __init__(self, text: bytes) -> None:
        first, *others = text.split(_BYTES)
        self._set([first, *(other[1:] for other in others)], [other[0] - 48 for other in others])

    def _set(self, pieces: list[bytes], values: list[int]) -> None:
        """`pieces` with a value between each two of them."""
        self._pieces = pieces
        self._values = values
        self._format = b"%b".join(piece.replace(b"%", b"%%") for piece in pieces)
        self._pick: Any = itemgetter(*values) if values else lambda given: ()

    def with_values(self, values: Mapping[int, bytes]) -> Self:
        """The same with these in their places for good."""
        pieces, left = [self._pieces[0]], list[int]()
        for value, piece in zip(self._values, self._pieces[1:], strict=True):
            if value in values:
                pieces[-1] += values[value] + piece
            else:
                pieces.append(piece)
                left.append(value)
        made = type(self).__new__(type(self))
        made._set(pieces, left)
        return made

    def filled(self, values: Sequence[bytes]) -> bytes:
        made: bytes = self._format % self._pick(values)
        return made
