"""A sandbox's secrets as files, in a folder of a file system in memory that is its driver's to mount and remove."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from faas.secret import Secret


def write(folder: Path, values: Mapping[str, Secret], owner: tuple[int, int], *, others: bool = False) -> None:
    """Blocking. `folder` with a file for each, to be read by `owner` (uid, gid), and by `others` where nobody else on
    this machine comes to it. What was there goes. Raises OSError."""
    remove(folder)
    folder.mkdir(mode=0o700)
    for name, value in values.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(folder / name, flags, 0o400), "wb") as file:
            file.write(value.reveal().encode())
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), 0o444 if others else 0o400)
    os.chown(folder, *owner)
    folder.chmod(0o555 if others else 0o500)


def remove(folder: Path) -> None:
    """Blocking. No error where there is none."""
    shutil.rmtree(folder, ignore_errors=True)
