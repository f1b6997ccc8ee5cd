"""`PtyTerminal`: the master side of a sandbox's terminal, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable

READ_BYTES = 65_536
WRITE_SECONDS = 10.0  # what a program does not take by then is dropped: a terminal's input is no pipe


class PtyTerminal:
    """Implements `faas.protocol.Terminal`; owns `master`, a non-blocking descriptor. One reader and one writer."""

    def __init__(self, master: int) -> None:
        self._master = master

    async def read(self) -> bytes:
        while self._master >= 0:
            try:
                return os.read(self._master, READ_BYTES)
            except BlockingIOError:
                await self._turn(_loop().add_reader, _loop().remove_reader)
            except OSError as error:
                if error.errno != errno.EIO:  # nobody has the other side open any more
                    raise
                break
        return b""

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WRITE_SECONDS):
                while view and self._master >= 0:
                    try:
                        view = view[os.write(self._master, view) :]
                    except BlockingIOError:
                        await self._turn(_loop().add_writer, _loop().remove_writer)
                    except OSError as error:
                        if error.errno != errno.EIO:
                            raise
                        return

    def resize(self, columns: int, rows: int) -> None:
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def plain(self) -> None:
        if self._master >= 0:  # both sides have one set of these
            modes = termios.tcgetattr(self._master)
            modes[1] &= ~termios.OPOST
            modes[3] &= ~termios.ECHO
            termios.tcsetattr(self._master, termios.TCSANOW, modes)

    def close(self) -> None:
        master, self._master = self._master, -1
        if master >= 0:
            _loop().remove_reader(master)
            _loop().remove_writer(master)
            os.close(master)

    async def _turn(self, watch: Callable[[int, Callable[[], None]], None], forget: Callable[[int], bool]) -> None:
        """Wait until the descriptor can be read, or written."""
        master, ready = self._master, asyncio.Event()
        watch(master, ready.set)
        try:
            await ready.wait()
        finally:
            if self._master == master:
                forget(master)


def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
