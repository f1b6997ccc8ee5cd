"""A backup as one tar file, whole each time: to carry away."""

from __future__ import annotations

import asyncio
import os
import tarfile
import time
from pathlib import Path

from faas.background import to_its_end
from faas.backup.manifest import MANIFEST, Blob, Entry, Manifest, blob_name
from faas.backup.target import Checked, Chunks, refused, sync_folder
from faas.oci.digest import Digest

SUFFIX = ".tar"


class ArchiveTarget:
    """Implements `faas.backup.target.Target`: members in the order in which they come, the manifest last."""

    def __init__(self, path: Path) -> None:
        """Blocking. Raises StorageFull."""
        self._path = path
        self._part = path.with_name(path.name + ".part")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = open(os.open(self._part, flags, 0o600), "wb")  # noqa: SIM115 - until `close`
        except OSError as error:
            raise refused(path, error) from None

    def close(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def lacks(self, blobs: tuple[Blob, ...]) -> list[Blob]:
        return list(blobs)

    async def file(self, entry: Entry, chunks: Chunks) -> None:
        await self._member(entry.name, entry.size, entry.digest, chunks)

    async def blob(self, blob: Blob, chunks: Chunks) -> None:
        await self._member(blob_name(blob.digest), blob.size, blob.digest, chunks)

    async def finish(self, manifest: Manifest) -> Path:
        raw = manifest.to_json()

        async def once() -> Chunks:
            yield raw

        await self._member(MANIFEST, len(raw), Digest.of(raw), once())
        try:
            await to_its_end(asyncio.to_thread(self._complete))
        except OSError as error:
            raise refused(self._path, error) from None
        return self._path

    def _complete(self) -> None:
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of an archive
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.rename(self._path)
        sync_folder(self._path.absolute().parent)

    async def _member(self, name: str, size: int, digest: Digest, chunks: Chunks) -> None:
        """Raises Unavailable where the bytes are not what was said, StorageFull."""
        checked = Checked(name, size, digest)
        head = tarfile.TarInfo(name)
        head.size, head.mode, head.mtime = size, 0o600, int(time.time())

        def add(chunk: bytes) -> None:
            checked.add(chunk)
            self._file.write(chunk)

        try:
            self._file.write(head.tobuf(tarfile.PAX_FORMAT))
            async for chunk in chunks:
                await to_its_end(asyncio.to_thread(add, chunk))
            self._file.write(bytes(-size % tarfile.BLOCKSIZE))
        except OSError as error:
            raise refused(self._path, error) from None
        checked.end()
