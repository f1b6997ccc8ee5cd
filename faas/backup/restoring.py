"""`Restoring`: a backup becomes a data folder. Everything is read and compared first; then it is copied, compared once
more, and gets its names when all of it is there. Everything blocks."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from faas.backup.manifest import DATABASES, KEY_SETS, Manifest, blob_name
from faas.backup.source import Source
from faas.backup.target import make_folder, refused, sync_folder
from faas.errors import Conflict, InvalidInput, StorageFull
from faas.oci.digest import Digest

WORK = ".restoring"  # in the data folder: what a crash leaves, and the next run removes
IGNORED = (WORK, "lost+found")
OPERATORS = ("prices.toml",)  # files that stay root's, and which the server's account has to read; key sets are, too
SPARE_BYTES = 64 << 20
CHUNK = 1 << 20
Told = Callable[[int], None]  # of bytes that were read


class Restoring:
    """`known`: database → the schema versions that this version of faas can read."""

    def __init__(self, source: Source, manifest: Manifest, data: Path, known: Mapping[str, frozenset[str]]) -> None:
        self._source = source
        self._manifest = manifest
        self._data = data
        self._known = known

    def check(self) -> None:
        """What can be said before anything is read. Raises Conflict, InvalidInput, StorageFull."""
        for name, schema in self._manifest.schemas.items():
            if name in self._known and schema not in self._known[name]:
                raise InvalidInput(
                    f"the backup is of faas {self._manifest.version}: its {name} has the schema {schema}, and this "
                    f"version knows {max(self._known[name])} at most",
                    hint=f"install faas {self._manifest.version} or a newer one, and restore with it",
                )
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            there = [entry.name for entry in self._data.iterdir() if entry.name not in IGNORED]
            free = shutil.disk_usage(self._data).free
        except OSError as error:
            raise refused(self._data, error) from None
        if there:
            raise Conflict(
                f"{self._data} is not empty: it holds {min(there)}",
                hint="stop the server and move the folder away, or pass another --data",
            )
        if free < self._manifest.bytes + SPARE_BYTES:
            raise StorageFull(f"{self._data} has room for {free >> 20} MB, the backup has {self._manifest.bytes >> 20}")

    def verify(self, told: Told) -> None:
        """Raises InvalidInput where a byte of it is not as the manifest says."""
        for name, size, digest in self._everything():
            for chunk in self._read(name, size, digest):
                told(len(chunk))

    def run(self, told: Told) -> None:
        """Raises InvalidInput, StorageFull; the data folder is empty then as it was."""
        work = self._data / WORK
        try:
            self._take()
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
            for name, size, digest in self._everything():
                self._copy(work / name, name, size, digest, told)
            for folder, _, _ in os.walk(work):
                sync_folder(Path(folder))
            self._place(work)
        except OSError as error:
            raise refused(self._data, error) from None
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(work)

    def _take(self) -> None:
        """The folder for ourselves: a server's account that shares an emptied one puts nothing between, and the next
        start gives it what is here now (`worker.launcher.data_folder`)."""
        if os.geteuid() == 0:
            os.chown(self._data, 0, -1)
        self._data.chmod(0o700)

    def _everything(self) -> Iterator[tuple[str, int, Digest]]:
        for entry in self._manifest.files:
            yield entry.name, entry.size, entry.digest
        for blob in self._manifest.blobs:
            yield blob_name(blob.digest), blob.size, blob.digest

    def _read(self, name: str, size: int, digest: Digest) -> Iterator[bytes]:
        hasher, done = digest.hasher(), 0
        with self._source.open(name) as file:
            while chunk := file.read(CHUNK):
                done += len(chunk)
                hasher.update(chunk)
                yield chunk
        if done != size or hasher.hexdigest() != digest.hex:
            raise InvalidInput(
                f"{name} of the backup is damaged: it is not what the manifest says",
                hint="restore another one; nothing was changed",
            )

    def _copy(self, path: Path, name: str, size: int, digest: Digest, told: Told) -> None:
        make_folder(path.parent)
        with open(path, "xb", opener=_private) as file:
            for chunk in self._read(name, size, digest):
                file.write(chunk)
                told(len(chunk))
            file.flush()
            if name.startswith(f"{KEY_SETS}/"):
                path.parent.chmod(0o755)
            if name in OPERATORS or name.startswith(f"{KEY_SETS}/"):
                os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())

    def _place(self, work: Path) -> None:
        """The gateway's database last: with it the folder is a server's."""
        order = sorted(os.listdir(work), key=lambda name: (name == DATABASES[0], name))  # noqa: PTH208
        for name in order:
            (work / name).rename(self._data / name)
        sync_folder(self._data)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
