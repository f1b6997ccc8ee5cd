"""A folder of backups that share their blobs: a further one brings only what is new.

DIR/blobs/sha256/ab/…      one file per digest, for all of them
DIR/20300101T000000Z/      one backup: databases, settings, manifest.json
DIR/20300101T000000Z.part/ one that did not get to its end; the next run removes it, and keeps the blobs that came
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from faas.backup.manifest import MANIFEST, Blob, Entry, Manifest, blob_name
from faas.backup.target import Chunks, refused, sync_folder, write
from faas.errors import Conflict, InvalidInput
from faas.oci.digest import ALGORITHMS, Digest

_STAMP = re.compile(r"\d{8}T\d{6}Z(-\d+)?")
PART = ".part"
CHUNK = 1 << 20


class FolderTarget:
    """Implements `faas.backup.target.Target`; one process at a time writes to a folder."""

    def __init__(self, root: Path) -> None:
        """Blocking. Raises Conflict where another one writes there, InvalidInput where it is no folder of backups."""
        self.root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_strange(root)
            self._lock = open(  # noqa: SIM115 - held until `close`
                os.open(root / "lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w"
            )
        except OSError as error:
            raise refused(root, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Conflict(f"another backup to {root} is under way") from None
        for left in root.glob("*" + PART):
            shutil.rmtree(left, ignore_errors=True)
        self._name = _free_name(root)
        self._part = root / (self._name + PART)

    def close(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        self._lock.close()

    def lacks(self, blobs: tuple[Blob, ...]) -> list[Blob]:
        return [blob for blob in blobs if _size_of(self.root / blob_name(blob.digest)) != blob.size]

    async def file(self, entry: Entry, chunks: Chunks) -> None:
        await write(self._part / entry.name, entry.size, entry.digest, chunks)

    async def blob(self, blob: Blob, chunks: Chunks) -> None:
        await write(self.root / blob_name(blob.digest), blob.size, blob.digest, chunks)

    async def finish(self, manifest: Manifest) -> Path:
        raw = manifest.to_json()

        async def once() -> Chunks:
            yield raw

        await write(self._part / MANIFEST, len(raw), Digest.of(raw), once())
        return await asyncio.to_thread(self._name_it)

    def _name_it(self) -> Path:
        made = self.root / self._name
        self._part.rename(made)
        sync_folder(self.root)
        return made

    # --- looking after what is there

    def verify(self, looked: Callable[[int], None]) -> list[str]:
        """Blocking. Read every blob; those that are damaged are removed, so that they come again, and returned."""
        damaged = []
        for blob in _blobs(self.root):
            digest = _digest_of(blob)
            if digest is None or _hash(blob, digest.algorithm, looked) != digest.hex:
                blob.unlink()
                damaged.append(blob.name)
        return damaged

    def prune(self, keep: int) -> list[str]:
        """Blocking. Remove all backups but the `keep` newest, then the blobs that none of these names; their names.

        Raises InvalidInput where a manifest cannot be read: nothing is removed then.
        """
        names = backups(self.root)
        gone, kept = names[:-keep], names[-keep:]
        needed = {blob.digest for name in kept for blob in read_manifest(self.root / name).blobs}
        for name in gone:
            part = self.root / (name + PART)
            (self.root / name).rename(part)  # from here on it is none, however this ends
            shutil.rmtree(part)
        for blob in _blobs(self.root):
            if _digest_of(blob) not in needed:
                blob.unlink()
        return gone


def backups(root: Path) -> list[str]:
    """Names of the backups in a folder, the oldest first."""
    names = [entry.name for entry in root.iterdir() if _STAMP.fullmatch(entry.name) and (entry / MANIFEST).is_file()]
    return sorted(names, key=lambda name: (name[:16], int(name[17:] or 0)))


def read_manifest(folder: Path) -> Manifest:
    """Raises InvalidInput."""
    path = folder / MANIFEST
    try:
        return Manifest.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from None


def _refuse_strange(root: Path) -> None:
    """What is not ours is not to be mixed with it."""
    for entry in root.iterdir():
        name = entry.name.removesuffix(PART)
        if name not in ("lock", "blobs", "lost+found") and not _STAMP.fullmatch(name):
            raise InvalidInput(
                f"{root} holds {entry.name}, which is no backup", hint="choose an empty folder, or one of backups"
            )


def _free_name(root: Path) -> str:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    number, name = 0, stamp
    while (root / name).exists():
        number += 1
        name = f"{stamp}-{number}"
    return name


def _size_of(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return None


def _blobs(root: Path) -> list[Path]:
    """Everything that lies where blobs do, what a crash left too."""
    return [path for algorithm in ALGORITHMS for path in (root / "blobs" / algorithm).glob("??/*")]


def _digest_of(path: Path) -> Digest | None:
    try:
        return Digest.parse(f"{path.parent.parent.name}:{path.name}")
    except ValueError:
        return None


def _hash(path: Path, algorithm: str, looked: Callable[[int], None]) -> str:
    hasher = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            looked(len(chunk))
    return hasher.hexdigest()
