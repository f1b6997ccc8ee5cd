"""The data folder, between root and the server's account.

The folder is root's and sticky: the account makes files in it, and can neither remove nor rename what is root's there,
which are the launcher's folders, `config.toml`, `backups`. What the server keeps is the account's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from worker.launcher.privileges import Account

log = logging.getLogger("worker.launcher")

SHARED = 0o1770  # with the account's group
PRIVATE = 0o700
SERVERS = (
    "access",
    "admin-token",
    "backup",
    "blobs",
    "canary-key",
    "logs",
    "quarantine",
    "secrets-key",
    "server.json",
    "uploads",
)  # what the server keeps; and
DATABASE_ENDINGS = (".db", ".db-wal", ".db-shm", ".db-journal")
DEEPEST = 32  # folders in each other; the server makes a few
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def hand_over(data: Path, account: Account) -> None:
    """Blocking, as root, before the server is the account's. All of the server's files become that account's the first
    time, which is a long walk only after an upgrade. Raises OSError."""
    with _opened(data) as folder:
        found = os.fstat(folder)
        if (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, account.gid, SHARED):
            return
        os.fchown(folder, 0, 0)
        os.fchmod(folder, PRIVATE)  # nobody changes anything meanwhile
        for name in os.listdir(folder):  # noqa: PTH208 - of a descriptor
            if name in SERVERS or name.endswith(DATABASE_ENDINGS):
                _give(folder, name, account)
        os.fchown(folder, 0, account.gid)
        os.fchmod(folder, SHARED)


def keep(data: Path) -> None:
    """Blocking, as root: the server stays root, and so does its folder. A later `hand_over` walks through all of it."""
    with _opened(data) as folder:
        if os.fstat(folder).st_gid or os.fstat(folder).st_uid:
            os.fchown(folder, 0, 0)
            os.fchmod(folder, PRIVATE)


def _give(folder: int, name: str, account: Account, depth: int = 0) -> None:
    """A link is given itself, never what it leads to; a file with another name elsewhere is left alone: whose that is
    nobody can say. So is what lies too deep, which the server has not made and whose walk would end this start."""
    opened = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(opened)
        if stat.S_ISDIR(found.st_mode) and depth < DEEPEST:
            with _opened(name, dir_fd=folder) as inner:
                for below in os.listdir(inner):  # noqa: PTH208
                    _give(inner, below, account, depth + 1)
                os.fchown(inner, account.uid, account.gid)
        elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            os.chown(f"/proc/self/fd/{opened}", account.uid, account.gid)
        elif (found.st_uid, found.st_gid) != (account.uid, account.gid):
            log.warning("%s in the data folder is no plain file of its own: it stays as it is", name)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _opened(path: Path | str, dir_fd: int | None = None) -> Iterator[int]:
    flags = _FOLDER if dir_fd is None else _FOLDER | os.O_NOFOLLOW
    folder = os.open(path, flags, dir_fd=dir_fd)
    try:
        yield folder
    finally:
        os.close(folder)
