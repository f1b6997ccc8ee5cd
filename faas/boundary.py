"""`Boundary`: whether what a connection has brought so far ends where a request ends, or in the middle of one."""

from __future__ import annotations

END = b"\r\n\r\n"  # of a head, and of a body in chunks


class Boundary:
    """Tell it of all that came, in order. It is sure of nothing but of what it says yes to.

    Once all requests that have begun are whole, what came ends with the last one if it ends with an empty line (what
    else could stand between would be a whole head), or if its bytes are as many as its head says.
    """

    __slots__ = ("_ends", "_left")

    def __init__(self) -> None:
        self._left: int | None = 0  # bytes of the last request that have not come; None: not known
        self._ends = False

    def took(self, data: bytes, begun: int, length: int | None) -> None:
        """`begun` requests were found to begin by the end of `data`; `length`: of the last one's body, None if that is
        not known before its end."""
        if not data:
            return
        left = self._left
        if begun == 1 and left == 0 and length is not None and (end := data.find(END)) >= 0:
            left = end + len(END) + length - len(data)
        elif not begun and left:
            left -= len(data)
        else:
            left = None
        self._left = left if left is not None and left >= 0 else None
        self._ends = data.endswith(END)

    @property
    def is_here(self) -> bool:
        """For who knows that all requests that have begun are whole."""
        return self._left == 0 or self._ends
