"""The first process of a sandbox, seen from outside: its output as streams, its end as a future.

The runtime program starts it and leaves; it becomes our child because this process is a child subreaper
(prctl(2), PR_SET_CHILD_SUBREAPER), so its exit status is ours to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator

from worker.drivers.base import Exit
from worker.pipe_end import PipeEnd

PR_SET_CHILD_SUBREAPER = 36
STREAM_BYTES = 1 << 18  # buffered per stream before the reader must have read: the longest log line


def become_subreaper() -> None:
    """Adopt the orphans of the runtime program. Once per server."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


async def stream(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    """The reading end of a pipe as a stream with back-pressure; the transport owns the descriptor."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=STREAM_BYTES, loop=loop)
    made = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), PipeEnd(descriptor))
    return reader, made[0]


class Process:
    """Watches `pid` through a pidfd, which cannot come to mean another process. `ended` is called once, on the loop."""

    def __init__(self, pid: int, oom_kills: Callable[[], int], ended: Callable[[Exit], None]) -> None:
        self.pid = pid
        self._oom_kills = oom_kills
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._on_end)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """A pidfd that stays open whatever happens to the process. Raises OSError where it has ended."""
        descriptor = os.dup(self._pidfd)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def kill(self) -> None:
        """SIGKILL. With the first process of a PID namespace the kernel kills all the others."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # somebody else's child: how it ended is not ours to know
            status = None
        os.close(self._pidfd)
        self._pidfd = -1
        number = status.si_status if status is not None else signal.SIGKILL
        if status is not None and status.si_code == os.CLD_EXITED:
            # A process that lost a child for want of memory and gave up; one that went on and ended well did not.
            self._ended(Exit(number, 0, number != 0 and self._oom_kills() > 0))
        else:
            self._ended(Exit(128 + number, number, self._oom_kills() > 0))
