"""`Deadlines`: the time limit of one revision's invocations."""

from __future__ import annotations

from typing import Protocol

from faas import deadlines
from faas.errors import TimedOut


class Limited(Protocol):
    """What may take so long and no longer."""

    def over_time(self, error: TimedOut) -> None:
        """It has taken too long; it is none of these any more."""
        ...


class Deadlines(deadlines.Deadlines[Limited]):
    """`seconds` after `add` whatever has not been discarded is over time."""

    __slots__ = ()

    def __init__(self, seconds: float) -> None:
        super().__init__(
            seconds, lambda limited: limited.over_time(TimedOut(f"Task timed out after {seconds:.2f} seconds"))
        )
