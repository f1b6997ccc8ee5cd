"""`Lock`: one launcher per data folder: a new one waits until the one before has ended everything that it had."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import stat
from pathlib import Path

from faas.errors import Unavailable

log = logging.getLogger("worker.launcher")

WAIT_SECONDS = 60.0  # the one before ends its sandboxes: 20 s at most for each step, nearly always less than one
LOOK_SECONDS = 0.02


class Lock:
    """On `folder`, which is root's alone, as `others` are; it goes with this process."""

    def __init__(self, folder: Path, *others: Path) -> None:
        self._folder = folder
        self._others = others
        self._descriptor = -1

    @property
    def is_held(self) -> bool:
        return self._descriptor >= 0

    async def take(self) -> None:
        """Raises Unavailable where another one stays, or where a folder is not root's own."""
        for other in self._others:
            os.close(_opened(other))
        descriptor = _opened(self._folder)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                if not _locked(descriptor):
                    log.info("waiting for the end of the launcher before this one")
                while not _locked(descriptor):  # noqa: ASYNC110 - another process's end
                    await asyncio.sleep(LOOK_SECONDS)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, TimeoutError):
                raise Unavailable(
                    "the server before this one has not ended yet", hint="look for its launcher"
                ) from None
            raise
        self._descriptor = descriptor


def _opened(folder: Path) -> int:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"cannot use {folder}: {error.strerror}") from None
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(descriptor)
        raise Unavailable(f"{folder} must be root's alone", hint=f"chown root, chmod 0700 {folder}")
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
