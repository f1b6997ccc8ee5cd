"""Blobs as files: `blobs/<algorithm>/<ab>/<hex>`, sessions as `uploads/<id>`, what was found damaged in `quarantine/`.

Order on the way in: stream into the session's file while hashing → fsync → rename → fsync the folder; only then does
the caller write the row. A crash leaves at most a file without a row, never a row without a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from faas.background import to_its_end
from faas.oci.digest import ALGORITHMS, Digest
from registry.storage.base import Condition, DigestMismatch, Disk, Quarantined, SizeExceeded, UploadGone

BATCH = 1 << 20  # bytes gathered before they go to a thread: a hop costs more than hashing 64 KiB
CHUNK = 1 << 20
THREADS = 4
COMMITS = 2  # at once: hashing again and flushing take long, and must not hold up what only looks at a file
LISTED = 1000  # quarantined files in one answer
_UPLOAD_ID = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


class FileUpload:
    """An open session. The running sha256 is kept in memory; after a restart it is computed from the file."""

    def __init__(self, store: FileBlobStore, upload_id: str, size: int, hasher: Any | None) -> None:
        self.id = upload_id
        self.size = self.expected = size
        self.owner = ""
        self.lock = asyncio.Lock()
        self.touched = time.monotonic()
        self._ended = False
        self._store = store
        self._path = store.uploads / upload_id
        self._hasher = hasher

    async def append(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> int:
        if tail := await self.gather(chunks, limit):
            await self._flush(tail)
        return self.size

    async def gather(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> bytes:
        pending: list[bytes] = []
        waiting = 0
        most = None if limit is None else self.size + limit
        try:
            async for chunk in chunks:
                pending.append(chunk)
                waiting += len(chunk)
                if most is not None and self.size + waiting > most:
                    raise SizeExceeded
                if waiting >= BATCH:
                    await self._flush(b"".join(pending))
                    pending, waiting = [], 0
        finally:
            self.touched = time.monotonic()
        return b"".join(pending)

    async def _flush(self, data: bytes) -> None:
        await to_its_end(self._store.run(lambda: self._write(data)))

    def _write(self, data: bytes) -> None:
        """File, size and hash move together: what was written of a batch that failed (disk full) is taken back."""
        file = self._opened()
        try:
            view, offset = memoryview(data), self.size
            while view:
                written = os.pwrite(file, view, offset)
                view, offset = view[written:], offset + written
        except BaseException:
            os.ftruncate(file, self.size)
            raise
        finally:
            os.close(file)
        if self._hasher is not None:
            self._hasher.update(data)
        self.size = offset

    def _opened(self) -> int:
        """The file, for writing; it is made where nothing was written yet. Raises UploadGone."""
        if self._ended:
            raise UploadGone
        try:
            return os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | (0 if self.size else os.O_CREAT), 0o600)
        except FileNotFoundError:
            raise UploadGone from None

    async def reader(self) -> int:
        return await self._store.run(lambda: os.open(self._path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    async def commit(self, digest: Digest, tail: bytes = b"") -> int:
        try:
            await to_its_end(self._store.run_commit(lambda: self._commit(digest, tail)))
        finally:
            if self._ended:
                self.end()
        return self.size

    def _commit(self, digest: Digest, tail: bytes) -> None:
        if tail or not self.size:
            self._write(tail)  # what fails here leaves the session as it was
        try:
            self._make_blob(digest)
        except OSError:
            self._ended = True
            raise

    def _make_blob(self, digest: Digest) -> None:
        try:
            stored = self._path.stat().st_size
        except FileNotFoundError:
            raise UploadGone from None
        if stored != self.size:
            raise OSError(f"the upload has {stored} bytes, not {self.size}")
        if digest.algorithm == "sha256" and self._hasher is not None:
            found = self._hasher.hexdigest()
        else:
            found = _hash(self._path, digest.algorithm)
        if found != digest.hex:
            raise DigestMismatch
        target = self._store.path(digest)
        try:
            _sync(self._path)
        except OSError:  # the kernel may have dropped what it could not write, and would say yes the next time
            self._path.unlink(missing_ok=True)
            raise
        self._path.rename(target)  # also over a file of that name: should it be damaged, this mends it
        _sync(target.parent)

    async def cancel(self) -> None:
        self.end()
        await self._store.run(lambda: self._path.unlink(missing_ok=True))

    def end(self) -> None:
        self._ended = True
        self._store.forget(self.id)


def _mark(repository: str) -> str:
    """Ends the names of a repository's sessions, so that they are no other one's, also after a restart."""
    return hashlib.sha256(repository.encode()).hexdigest()[:32]


def _listed(folder: Path, algorithm: str, before: float) -> list[Digest]:
    found = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError, ValueError):  # gone meanwhile; no blob's name
            if entry.stat().st_ctime < before:  # the rename that made it a blob
                found.append(Digest.parse(f"{algorithm}:{entry.name}"))
    return found


def _hash(path: Path, algorithm: str) -> str:
    hasher = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _hash_piece(file: int, offset: int, hasher: Any) -> int:
    """Hash what stands at `offset`; how many bytes that were. The disk is asked, and the page cache left as it was."""
    os.posix_fadvise(file, offset, CHUNK, os.POSIX_FADV_DONTNEED)
    data = os.pread(file, CHUNK, offset)
    hasher.update(data)
    os.posix_fadvise(file, offset, CHUNK, os.POSIX_FADV_DONTNEED)
    return len(data)


def _step_back() -> None:
    """This thread runs when nobody else wants to (Linux has a priority per thread)."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileBlobStore:
    """Implements `registry.storage.base.BlobStore` below `root`."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.uploads = root / "uploads"
        self.held_back = root / "quarantine"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._commits = ThreadPoolExecutor(COMMITS, thread_name_prefix="commits")
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="checks", initializer=_step_back)
        self._open: dict[str, FileUpload] = {}

    async def open(self) -> None:
        await self.run(self._make_folders)

    def _make_folders(self) -> None:
        """Every folder that a blob may lie in, durable before the first one comes."""
        algorithms = [self.blobs / algorithm for algorithm in ALGORITHMS]
        for folder in (self.blobs, self.uploads, self.held_back, *algorithms):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for algorithm in algorithms:
            for number in range(256):
                (algorithm / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        for folder in (*algorithms, self.blobs, self.blobs.parent):
            _sync(folder)

    def close(self) -> None:
        for pool in (self._checks, self._commits, self._threads):
            pool.shutdown(wait=True)

    def path(self, digest: Digest) -> Path:
        return self.blobs / digest.algorithm / digest.hex[:2] / digest.hex

    async def size(self, digest: Digest) -> int | None:
        return await self.run(lambda: self._size(digest))

    def _size(self, digest: Digest) -> int | None:
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    async def missing(self, digests: Iterable[Digest]) -> Digest | None:
        wanted = tuple(digests)
        return await self.run(lambda: next((digest for digest in wanted if self._size(digest) is None), None))

    async def delete(self, digest: Digest) -> None:
        await self.run(lambda: self.path(digest).unlink(missing_ok=True))

    async def listing(self, older_than: float) -> AsyncIterator[list[Digest]]:
        before = time.time() - older_than
        for algorithm in ALGORITHMS:
            for number in range(256):
                folder = self.blobs / algorithm / f"{number:02x}"
                if found := await self.run(partial(_listed, folder, algorithm, before)):
                    yield found

    async def check(self, digest: Digest, size: int, pace: Callable[[int], Awaitable[None]]) -> Condition:
        """In a thread that steps back for everybody; around the page cache, which would only say what was written."""
        try:
            file = await to_its_end(self._run_check(lambda: os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)))
        except FileNotFoundError:
            return Condition.ABSENT
        except OSError:
            return Condition.UNREADABLE
        try:
            if os.fstat(file).st_size != size:
                return Condition.DAMAGED
            hasher, offset = digest.hasher(), 0
            while count := await to_its_end(self._run_check(partial(_hash_piece, file, offset, hasher))):
                offset += count
                await pace(count)
            return Condition.WHOLE if hasher.hexdigest() == digest.hex else Condition.DAMAGED
        except OSError:
            return Condition.UNREADABLE
        finally:
            os.close(file)

    async def quarantine(self, digest: Digest) -> None:
        await to_its_end(self.run(lambda: self._quarantine(digest)))

    def _quarantine(self, digest: Digest) -> None:
        source = self.path(digest)
        with contextlib.suppress(FileNotFoundError):  # nothing is ever written over: the name says when
            source.rename(self.held_back / f"{digest.algorithm}-{digest.hex}.{time.time_ns()}")
        for folder in (self.held_back, source.parent):
            _sync(folder)

    async def quarantined(self) -> list[Quarantined]:
        def work() -> list[Quarantined]:
            files = sorted(os.scandir(self.held_back), key=lambda entry: entry.name.rpartition(".")[2])
            return [Quarantined(f"quarantine/{f.name}", f.stat().st_size) for f in files[:LISTED]]

        return await self.run(work)

    async def disk(self) -> Disk:
        found = os.statvfs(self.blobs)  # answered from the kernel's memory: no way to a thread is worth it
        return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)

    def sessions(self) -> Collection[FileUpload]:
        return self._open.values()

    async def begin(self, repository: str) -> FileUpload:
        """Its file comes with its first bytes: a restart forgets a session that has none."""
        upload = FileUpload(self, secrets.token_hex(16) + _mark(repository), 0, hashlib.sha256())
        self._open[upload.id] = upload
        return upload

    async def resume(self, upload_id: str, repository: str) -> FileUpload | None:
        if not _UPLOAD_ID.fullmatch(upload_id) or not upload_id.endswith(_mark(repository)):
            return None
        if upload_id in self._open:
            return self._open[upload_id]

        def work() -> int | None:
            try:
                return (self.uploads / upload_id).stat().st_size
            except FileNotFoundError:
                return None

        size = await self.run(work)
        if size is None:
            return None
        return self._open.setdefault(upload_id, FileUpload(self, upload_id, size, None))

    async def sweep(self, older_than: float) -> int:
        idle = [u for u in self._open.values() if time.monotonic() - u.touched > older_than and not u.lock.locked()]
        for upload in idle:
            async with upload.lock:
                await upload.cancel()
        return len(idle) + await self.run(lambda: self._sweep_files(time.time() - older_than))

    def _sweep_files(self, before: float) -> int:
        """Sessions of an earlier run of the server."""
        swept = 0
        for entry in os.scandir(self.uploads):
            try:
                if entry.name not in self._open and entry.stat().st_mtime < before:
                    Path(entry).unlink()
                    swept += 1
            except FileNotFoundError:  # committed or cancelled meanwhile
                continue
        return swept

    def forget(self, upload_id: str) -> None:
        self._open.pop(upload_id, None)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def run_commit(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._commits, work)

    async def _run_check(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._checks, work)
