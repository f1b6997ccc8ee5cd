"""`Keeping`: while somebody holds it no stored file is deleted. A backup copies files long after it read the rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class Keeping:
    """Rows go on changing meanwhile: a collection unlinks what they say is leaving when nobody holds this any more."""

    def __init__(self) -> None:
        self._holders = 0

    @property
    def is_held(self) -> bool:
        return self._holders > 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
