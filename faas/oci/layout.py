"""Writing OCI image layouts (image-spec, image-layout.md), into a folder or as one tar file.

A layout never names an image that is not wholly there: blobs come first, each checked against its digest before it has
its name, and `index.json` last. One writer at a time; everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from faas.errors import Conflict, ImageUnusable, InvalidInput
from faas.oci.archive import CHUNK, blob_name
from faas.oci.bundle import NAMES, REF_NAME
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import MANIFEST_BYTES
from faas.oci.media_types import OCI_INDEX

VERSION = b'{"imageLayoutVersion":"1.0.0"}'
PART = ".faas-part-"  # begins the names of files that are being written
RECORD = 10_240  # a tar file is a multiple of this

Json = dict[str, Any]


class BlobWriter:
    """One blob on its way into an open file, from `offset` on. Written in order, by one thread at a time."""

    def __init__(self, file: int, offset: int, descriptor: Descriptor) -> None:
        self._file = file
        self._at = offset
        self._left = descriptor.size
        self._descriptor = descriptor
        self._hasher = descriptor.digest.hasher()

    def write(self, data: bytes) -> None:
        """Raises ImageUnusable where more comes than the descriptor says."""
        self._left -= len(data)
        if self._left < 0:
            raise ImageUnusable(f"the blob {self._descriptor.digest} is longer than its descriptor says")
        self._hasher.update(data)
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, self._at)
            self._at += written
            view = view[written:]

    def commit(self) -> None:
        """All has come. Raises ImageUnusable where it is not what its digest says; then it is not there."""
        if self._left or self._hasher.hexdigest() != self._descriptor.digest.hex:
            raise ImageUnusable(f"the blob {self._descriptor.digest} is not what its digest says")

    def close(self) -> None:
        """What has not been committed is gone."""


class Layout(Protocol):
    """Where images are written. Leaving it without `finish` leaves no image behind that was not there before."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, entries: Sequence[Json], blobs: Iterable[Descriptor]) -> None:
        """`entries` are the rows of index.json, `blobs` all that will be written. Raises InvalidInput."""
        ...

    def has(self, descriptor: Descriptor) -> bool:
        """Whether it is there already, whole and right."""
        ...

    def blob(self, descriptor: Descriptor) -> BlobWriter: ...

    def finish(self) -> None:
        """Every blob is there: now the images are."""
        ...


def open_layout(path: Path) -> Layout:
    """A folder, new or a layout already; or a new FILE.tar. Raises InvalidInput."""
    if path.is_dir():
        return LayoutFolder(path)
    if os.path.lexists(path):
        raise InvalidInput(f"{path} is there already", hint="name a new file, or the folder of a layout to add to")
    if path.name.endswith((".gz", ".tgz", ".zst", ".xz")):
        raise InvalidInput("an export is not compressed: its layers are already", hint="name a folder or FILE.tar")
    return LayoutTar(path) if path.suffix == ".tar" else LayoutFolder(path)


class _FolderBlob(BlobWriter):
    """A file of its own, renamed when it is whole."""

    def __init__(self, part: Path, target: Path, descriptor: Descriptor) -> None:
        self._part, self._target = part, target
        self._opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        super().__init__(self._opened, 0, descriptor)

    def commit(self) -> None:
        super().commit()
        os.fsync(self._opened)
        self._part.replace(self._target)

    def close(self) -> None:
        os.close(self._opened)
        self._part.unlink(missing_ok=True)


class LayoutFolder:
    """A layout in a folder. What is there stays: other images, and blobs that are right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = -1
        self._entries: Sequence[Json] = ()

    def __enter__(self) -> Self:
        """Raises InvalidInput on a folder that is something else, Conflict where somebody else writes to it."""
        self._path.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(os.open(self._path, os.O_RDONLY | os.O_DIRECTORY), self._path)
        try:
            self._check()
            for part in self._path.glob(f"{PART}*"):  # of one that was killed
                part.unlink()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def _check(self) -> None:
        version = self._path / "oci-layout"
        if not version.exists():
            if any(not entry.name.startswith(PART) for entry in self._path.iterdir()):
                raise InvalidInput(
                    f"{self._path} is a folder of something else", hint="name a new folder, or one with a layout"
                )
            return
        try:
            is_known = json.loads(_small(version)).get("imageLayoutVersion") == "1.0.0"
        except (ValueError, AttributeError, RecursionError):
            is_known = False
        if not is_known:
            raise InvalidInput(f"{version} is not of version 1.0.0", hint="name a new folder")
        self._index()

    def _index(self) -> Json:
        """index.json as it stands. Raises InvalidInput."""
        path = self._path / "index.json"
        if not path.exists():
            return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        try:
            index = json.loads(_small(path))
            if isinstance(index, dict) and all(isinstance(row, dict) for row in index["manifests"]):
                return index
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise InvalidInput(f"{path} is no index of images", hint="name a new folder")

    def begin(self, entries: Sequence[Json], blobs: Iterable[Descriptor]) -> None:
        self._entries = entries
        for algorithm in {blob.digest.algorithm for blob in blobs}:
            (self._path / "blobs" / algorithm).mkdir(parents=True, exist_ok=True)
        index = self._index()
        if not (self._path / "oci-layout").exists():
            self._write("index.json", json.dumps(index).encode())
            self._write("oci-layout", VERSION)

    def has(self, descriptor: Descriptor) -> bool:
        path = self._path / blob_name(descriptor.digest)
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_size == descriptor.size:
                with path.open("rb") as file:
                    return _digest(file, descriptor.digest) == descriptor.digest
        return False

    def blob(self, descriptor: Descriptor) -> BlobWriter:
        part = self._path / f"{PART}{descriptor.digest.hex}"
        return _FolderBlob(part, self._path / blob_name(descriptor.digest), descriptor)

    def finish(self) -> None:
        for folder in (self._path / "blobs").iterdir():
            _flush(folder)
        index = self._index()
        index["manifests"] = merged(index["manifests"], self._entries)
        self._write("index.json", json.dumps(index).encode())

    def _write(self, name: str, data: bytes) -> None:
        part = self._path / f"{PART}{name}"
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path / name)
        finally:
            part.unlink(missing_ok=True)
        _flush(self._path)


class LayoutTar:
    """A layout as one tar file. Every size is known before the first byte comes, so each blob has its place at once
    and several are written side by side. The same images give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{PART}{path.name}")
        self._file = -1
        self._places: dict[Digest, int] = {}

    def __enter__(self) -> Self:
        """Raises Conflict where somebody else writes it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        opened = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        self._file = _locked(opened, self._path)
        try:
            os.ftruncate(self._file, 0)
        except BaseException:  # Ctrl-C too: nobody leaves what was not entered
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._part.unlink(missing_ok=True)
        os.close(self._file)

    def begin(self, entries: Sequence[Json], blobs: Iterable[Descriptor]) -> None:
        index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": merged([], entries)}).encode()
        at = 0
        for name, data in (("oci-layout", VERSION), ("index.json", index)):
            start = self._header(at, name, len(data))
            os.pwrite(self._file, data, start)
            at = _rounded(start + len(data), tarfile.BLOCKSIZE)
        for blob in blobs:
            self._places[blob.digest] = start = self._header(at, blob_name(blob.digest), blob.size)
            at = _rounded(start + blob.size, tarfile.BLOCKSIZE)
        os.ftruncate(self._file, _rounded(at + 2 * tarfile.BLOCKSIZE, RECORD))

    def has(self, descriptor: Descriptor) -> bool:
        return False

    def blob(self, descriptor: Descriptor) -> BlobWriter:
        return BlobWriter(self._file, self._places[descriptor.digest], descriptor)

    def finish(self) -> None:
        os.fsync(self._file)
        if os.path.lexists(self._path):
            raise Conflict(f"{self._path} has come to be there meanwhile", hint="name a new file")
        self._part.rename(self._path)
        _flush(self._path.parent)

    def _header(self, at: int, name: str, size: int) -> int:
        """Where the content begins. Without times and owners: the same layout is the same file."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o644
        header = member.tobuf(tarfile.GNU_FORMAT)
        os.pwrite(self._file, header, at)
        return at + len(header)


def entry(descriptor: Descriptor, name: str) -> Json:
    """A row of index.json for the image `name` (`repository:tag` or `repository@digest`); "" for what has a subject."""
    annotations = {key: value for key, value in descriptor.annotations.items() if key not in NAMES}
    row = replace(descriptor, annotations=annotations).to_json()
    if name:
        row["annotations"] = {**annotations, REF_NAME: name}
    return row


def merged(there: Sequence[Json], entries: Iterable[Json]) -> list[Json]:
    """`entries` beside what was there: a name moves to what it names now, and nothing is listed twice."""
    rows: dict[tuple[str, str], Json] = {}
    for row in (*there, *entries):
        annotations = row.get("annotations") or {}
        name = str(annotations.get(REF_NAME) or "") if isinstance(annotations, dict) else ""
        rows[(name, "") if name else ("", str(row.get("digest")))] = row
    return list(rows.values())


def _locked(file: int, path: Path) -> int:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise Conflict(f"another export writes to {path}", hint="wait until it has ended") from None
    return file


def _digest(file: io.BufferedReader, like: Digest) -> Digest:
    hasher = like.hasher()
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return Digest(like.algorithm, hasher.hexdigest())


def _small(path: Path) -> bytes:
    """Raises ValueError on what is no file, or larger than a manifest may be."""
    if not path.is_file() or path.stat().st_size > MANIFEST_BYTES:
        raise ValueError("not a small file")
    return path.read_bytes()


def _rounded(size: int, step: int) -> int:
    return -(-size // step) * step


def _flush(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
