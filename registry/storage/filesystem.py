"""Blobs as files: `blobs/<algorithm>/<ab>/<hex>`, sessions as `uploads/<id>`.

Order on the way in: stream into the session's file while hashing → fsync → rename → fsync the folder; only then does
the caller write the row. A crash leaves at most a file without a row, never a row without a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from faas.oci.digest import Digest
from registry.storage.base import DigestMismatch

BATCH = 1 << 20  # bytes gathered before they go to a thread: a hop costs more than hashing 64 KiB
CHUNK = 1 << 20
THREADS = 4
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
T = TypeVar("T")


class FileUpload:
    """An open session. The running sha256 is kept in memory; after a restart it is computed from the file."""

    def __init__(self, store: FileBlobStore, upload_id: str, size: int, hasher: Any | None) -> None:
        self.id = upload_id
        self.size = size
        self.lock = asyncio.Lock()
        self.touched = time.monotonic()
        self._store = store
        self._path = store.uploads / upload_id
        self._hasher = hasher

    async def append(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> int:
        pending: list[bytes] = []
        waiting = 0
        start = self.size
        file = await self._store.run(lambda: os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        try:
            async for chunk in chunks:
                pending.append(chunk)
                waiting += len(chunk)
                if limit is not None and self.size - start + waiting > limit:
                    raise OverflowError
                if waiting >= BATCH:
                    await self._flush(file, pending)
                    pending, waiting = [], 0
            if pending:
                await self._flush(file, pending)
        finally:
            self.touched = time.monotonic()
            await self._store.run(lambda: os.close(file))
        return self.size

    async def _flush(self, file: int, pending: list[bytes]) -> None:
        def work() -> int:
            data = b"".join(pending)
            written = 0
            view = memoryview(data)
            while written < len(data):
                written += os.write(file, view[written:])
            if self._hasher is not None:
                self._hasher.update(data)
            return written

        # Shielded: a client that goes away must not leave the file ahead of its hash.
        self.size += await asyncio.shield(asyncio.ensure_future(self._store.run(work)))

    async def commit(self, digest: Digest) -> int:
        await self._store.run(lambda: self._commit(digest))
        self._store.forget(self.id)
        return self.size

    def _commit(self, digest: Digest) -> None:
        if not self._path.exists():
            self._path.touch(0o600)
        if digest.algorithm == "sha256" and self._hasher is not None:
            found = self._hasher.hexdigest()
        else:
            found = _hash(self._path, digest.algorithm)
        if found != digest.hex:
            raise DigestMismatch
        _publish(self._path, self._store.path(digest))

    async def cancel(self) -> None:
        self._store.forget(self.id)
        await self._store.run(lambda: self._path.unlink(missing_ok=True))


def _hash(path: Path, algorithm: str) -> str:
    hasher = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _publish(source: Path, target: Path) -> None:
    """fsync, rename, fsync the folder (and the new folder's own folder): durable when it returns."""
    _sync(source)
    if not target.parent.exists():
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sync(target.parent.parent)
    source.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileBlobStore:
    """Implements `registry.storage.base.BlobStore` below `root`."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.uploads = root / "uploads"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._open: dict[str, FileUpload] = {}

    async def open(self) -> None:
        def work() -> None:
            for folder in (self.blobs, self.uploads):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        await self.run(work)

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def path(self, digest: Digest) -> Path:
        return self.blobs / digest.algorithm / digest.hex[:2] / digest.hex

    async def size(self, digest: Digest) -> int | None:
        def work() -> int | None:
            try:
                return self.path(digest).stat().st_size
            except FileNotFoundError:
                return None

        return await self.run(work)

    async def begin(self) -> FileUpload:
        upload = FileUpload(self, secrets.token_hex(16), 0, hashlib.sha256())
        await self.run(lambda: (self.uploads / upload.id).touch(0o600))
        self._open[upload.id] = upload
        return upload

    async def resume(self, upload_id: str) -> FileUpload | None:
        if upload_id in self._open:
            return self._open[upload_id]
        if not _UPLOAD_ID.fullmatch(upload_id):
            return None

        def work() -> int | None:
            try:
                return (self.uploads / upload_id).stat().st_size
            except FileNotFoundError:
                return None

        size = await self.run(work)
        if size is None:
            return None
        return self._open.setdefault(upload_id, FileUpload(self, upload_id, size, None))

    async def put(self, data: bytes) -> Digest:
        digest = Digest.of(data)

        def work() -> None:
            temporary = self.uploads / secrets.token_hex(16)
            temporary.write_bytes(data)
            _publish(temporary, self.path(digest))

        await self.run(work)
        return digest

    async def delete(self, digest: Digest) -> None:
        await self.run(lambda: self.path(digest).unlink(missing_ok=True))

    async def total(self) -> int:
        return await self.run(lambda: sum(p.stat().st_size for p in self.blobs.glob("*/*/*")))

    async def sweep(self, older_than: float) -> int:
        def work() -> int:
            before, swept = time.time() - older_than, 0
            for path in self.uploads.iterdir():
                if path.name not in self._open and path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)
                    swept += 1
            return swept

        idle = [u for u in self._open.values() if time.monotonic() - u.touched > older_than and not u.lock.locked()]
        for upload in idle:
            await upload.cancel()
        return len(idle) + await self.run(work)

    def forget(self, upload_id: str) -> None:
        self._open.pop(upload_id, None)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
