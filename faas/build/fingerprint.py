"""The content of many files as one hash: whether what a runtime base was made of has changed since.

A file is read once: again only after its size, time or inode has changed. Everything blocks.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from faas.build.layer import ignored

CHUNK = 1 << 20


def fingerprint(paths: Iterable[Path], left_out: tuple[str, ...] = ()) -> str:
    """Of files, and of folders with all that is in them but `left_out` (the rules of `faas.build.layer`).

    Where a folder lies says nothing: the project's own ones lie elsewhere in each release.
    """
    hasher = hashlib.sha256()
    for path in sorted(set(paths)):
        for file in sorted(_below(path, left_out)) if path.is_dir() else (path,):
            name = file.relative_to(path) if file != path else file
            hasher.update(f"{name}\0{_content(file)}\n".encode(errors="surrogateescape"))
    return hasher.hexdigest()


def stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever a package manager replaces the file."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _below(folder: Path, left_out: tuple[str, ...]) -> Iterator[Path]:
    for current, folders, files in os.walk(folder):
        place = Path(current)
        folders[:] = [name for name in folders if not ignored((place / name).relative_to(folder).as_posix(), left_out)]
        paths = (place / name for name in files)
        yield from (p for p in paths if p.is_file() and not ignored(p.relative_to(folder).as_posix(), left_out))


def _content(path: Path) -> str:
    return _hashed(path, stamp(path))


@functools.lru_cache(maxsize=20_000)
def _hashed(path: Path, stamped: tuple[int, int, int]) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()
