"""`Source`: a backup that is read. Whoever gives one to restore may not mean well: names come from the manifest alone,
which allows only its own; links, and what is no plain file, are refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from faas.backup.folder import backups
from faas.backup.manifest import MANIFEST, MANIFEST_BYTES, Manifest, blob_name, is_file_name
from faas.errors import InvalidInput
from faas.oci.digest import Digest

MEMBERS = 2_000_000


class Source(Protocol):
    def open(self, name: str) -> BinaryIO:
        """A file of the backup, or a blob by `blob_name`. The caller closes it. Raises InvalidInput."""
        ...


def manifest_of(source: Source) -> Manifest:
    """Blocking. Raises InvalidInput."""
    with source.open(MANIFEST) as file:
        raw = file.read(MANIFEST_BYTES + 1)
    if len(raw) > MANIFEST_BYTES:
        raise InvalidInput(f"{MANIFEST} has more than {MANIFEST_BYTES >> 20} MB")
    return Manifest.parse(raw, MANIFEST)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Source]:
    """A tar file; one backup's folder; or a folder of backups, of which it is the newest. Raises InvalidInput."""
    if not path.is_dir():
        try:
            archive = tarfile.open(path, "r:")  # noqa: SIM115 - below
        except (OSError, tarfile.TarError) as error:
            raise InvalidInput(f"{path} is no backup: {error}", hint="the folder or .tar file of faas backup") from None
        with archive:
            yield ArchiveSource(archive)
        return
    if not (path / MANIFEST).is_file():
        found = backups(path)
        if not found:
            raise InvalidInput(f"{path} holds no backup", hint="the folder or .tar file of faas backup")
        path = path / found[-1]
    yield FolderSource(path)


class FolderSource:
    """One backup's folder; its blobs lie in the one above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def open(self, name: str) -> BinaryIO:
        root = self.folder.parent if name.startswith("blobs/") else self.folder
        try:
            return _plain(root, name)
        except FileNotFoundError:
            raise InvalidInput(f"{name} is not in the backup") from None
        except OSError as error:
            raise InvalidInput(f"{name} of the backup is a link, or cannot be read: {error.strerror}") from None


def _plain(root: Path, name: str) -> BinaryIO:
    """A plain file below `root`, through no link. Raises OSError, InvalidInput."""
    *folders, last = name.split("/")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, flags | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = inner
        file = os.open(last, flags | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidInput(f"{name} of the backup is no plain file")
    return open(file, "rb")


class ArchiveSource:
    """A tar file. Raises InvalidInput on any member that `faas backup` does not write."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            for member in archive:
                self._add(member)
        except (OSError, tarfile.TarError, ValueError) as error:
            raise InvalidInput(f"the archive cannot be read: {error}") from None

    def _add(self, member: tarfile.TarInfo) -> None:
        name = member.name
        if not member.isreg() or member.issparse():
            raise InvalidInput(f"the archive holds {name[:160]!r}, which is no plain file")
        if not (name == MANIFEST or is_file_name(name) or _is_blob(name)):
            raise InvalidInput(f"the archive holds {name[:160]!r}, which is no part of a backup")
        if name in self._members:
            raise InvalidInput(f"the archive holds {name[:160]!r} twice")
        if len(self._members) >= MEMBERS:
            raise InvalidInput(f"the archive has more than {MEMBERS} members")
        self._members[name] = member

    def open(self, name: str) -> BinaryIO:
        member = self._members.get(name)
        if member is None:
            raise InvalidInput(f"{name} is not in the backup")
        file = self._archive.extractfile(member)
        assert file is not None, "it is a plain file"
        return cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", file)))


def _is_blob(name: str) -> bool:
    parts = name.split("/")
    try:
        return len(parts) == 4 and name == blob_name(Digest.parse(f"{parts[1]}:{parts[3]}"))
    except ValueError:
        return False
