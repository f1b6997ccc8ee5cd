"""`Target`: where a backup is written to, and how a file gets there: hashed on its way, durable before its name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Protocol

from faas.background import to_its_end
from faas.backup.manifest import Blob, Entry, Manifest
from faas.errors import StorageFull, Unavailable
from faas.oci.digest import Digest

Chunks = AsyncIterator[bytes]


class Target(Protocol):
    """Of one backup that is being made. What it was given is whole, or it raises; without `finish` there is none."""

    def lacks(self, blobs: tuple[Blob, ...]) -> list[Blob]:
        """Blocking. Those that have to come."""
        ...

    async def file(self, entry: Entry, chunks: Chunks) -> None:
        """Raises Unavailable where the bytes are not what `entry` says, StorageFull."""
        ...

    async def blob(self, blob: Blob, chunks: Chunks) -> None:
        """As `file`."""
        ...

    async def finish(self, manifest: Manifest) -> Path:
        """Where the backup is."""
        ...

    def close(self) -> None: ...


class Checked:
    """The chunks of one file, counted and hashed. `end` raises Unavailable where they were not what was said."""

    def __init__(self, name: str, size: int, digest: Digest) -> None:
        self._name, self._size, self._digest = name, size, digest
        self._hasher = digest.hasher()
        self._done = 0

    def add(self, chunk: bytes) -> None:
        self._done += len(chunk)
        if self._done > self._size:
            raise Unavailable(f"{self._name} is longer than the server said: {self._size} bytes")
        self._hasher.update(chunk)

    def end(self) -> None:
        if self._done != self._size or self._hasher.hexdigest() != self._digest.hex:
            raise Unavailable(
                f"{self._name} did not come as the server said it is: {self._done} of {self._size} bytes",
                hint="run it again; a blob that stays so is damaged on the server: faas image scrub",
            )


async def write(path: Path, size: int, digest: Digest, chunks: Chunks) -> None:
    """To a file of its own that gets its name when it is whole and flushed; a folder on the way is made.

    Raises Unavailable, StorageFull.
    """
    checked = Checked(path.name, size, digest)
    temporary = path.with_name(path.name + ".part")
    try:
        with await to_its_end(asyncio.to_thread(_opened, temporary), undo=lambda file: file.close()) as file:

            def add(chunk: bytes) -> None:
                checked.add(chunk)
                file.write(chunk)

            async for chunk in chunks:
                await to_its_end(asyncio.to_thread(add, chunk))
            checked.end()
            await to_its_end(asyncio.to_thread(_flush, file.fileno(), file.flush))
        await asyncio.to_thread(_named, temporary, path)
    except OSError as error:
        raise refused(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)


def refused(path: Path, error: OSError) -> StorageFull:
    return StorageFull(f"{path} cannot be written: {error.strerror}", hint="is there room, and may you write there?")


def _opened(path: Path) -> BinaryIO:
    make_folder(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(path, flags, 0o600), "wb")


def make_folder(folder: Path) -> None:
    """Blocking. With all that are above it, for their owner alone."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _flush(file: int, flush: object) -> None:
    assert callable(flush)
    flush()
    os.fsync(file)


def _named(temporary: Path, path: Path) -> None:
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Blocking. Names of files in it are durable from here on."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
