"""`PipeEnd`: the reading end of a pipe for an event loop, closed once, whichever loop it is."""

from __future__ import annotations

import os


class PipeEnd:
    """What `loop.connect_read_pipe` takes; it owns `descriptor`.

    uvloop closes the descriptor itself, and then what it was given as well. By then another thread may have opened a
    file that got the same number: a plain file object would close that one, and whatever comes after it would go on
    with a descriptor that is somebody else's. So this closes nothing but the very pipe that it was made for.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pipe = self._there()

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._there() == self._pipe:
            os.close(self._descriptor)

    def _there(self) -> tuple[int, int] | None:
        """What the number means now: no other file is this pipe."""
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return None
        return found.st_dev, found.st_ino
