"""`Download`: a blob on its way from an upstream into the store, and to everybody who waits for it meanwhile.

Who waits reads the upload's file while it grows. Its last byte is told only when the digest is known to be right: a
client never holds a whole blob that is not the one it asked for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

from faas.background import to_its_end
from faas.errors import FaasError
from faas.oci.descriptor import Descriptor
from registry.errors import RegistryError
from registry.index.index import Index
from registry.space import Space
from registry.storage.base import DigestMismatch, SizeExceeded, Upload
from registry.upstream.client import Client
from registry.upstream.errors import Unreachable, Untrusted, UpstreamError
from registry.upstream.upstream import Copied

CHUNK = 1 << 18


class Download:
    """`run` it once; any number `reached` and `follow` it. One that `is_here` from the start needs no run."""

    def __init__(self, descriptor: Descriptor, path: Path, *, is_here: bool = False) -> None:
        self.descriptor = descriptor
        self._path = path  # of the blob, once it is whole
        self._is_here = is_here
        self.problem: UpstreamError | RegistryError | FaasError | OSError | None = None
        self._grown = asyncio.Event()  # a new one for each time that there is more
        self._available = 0
        self._file = -1  # of the upload, while it grows

    @property
    def size(self) -> int:
        return self.descriptor.size

    @property
    def received(self) -> int:
        """Bytes that came so far."""
        return self.size if self._is_here else self._available

    def fail(self, problem: UpstreamError) -> None:
        """Instead of `run`."""
        self.problem = problem
        self._tell()

    async def run(self, client: Client, copied: Copied, index: Index, space: Space) -> None:
        """Fetch, check, store. What goes wrong is for those who wait."""
        try:
            upload = await space.begin(copied.repository)
            try:
                async with upload.lock:
                    async with space.taking(copied.repository, upload, self.size):
                        await self._receive(client, copied, upload)
                    await self._commit(copied.repository, upload, index, space)
            except BaseException:
                await upload.cancel()
                raise
            self._is_here = True
        except SizeExceeded:
            self.problem = Untrusted(f"{copied.upstream.name} sends more than the blob's {self.size} bytes")
        except DigestMismatch:
            self.problem = Untrusted(f"{copied.upstream.name} sends another blob than {self.descriptor.digest}")
        except (UpstreamError, RegistryError, FaasError, OSError) as error:
            self.problem = error
        except BaseException:
            self.problem = Unreachable("the registry is shutting down")
            raise
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._tell()

    async def _receive(self, client: Client, copied: Copied, upload: Upload) -> None:
        self._file = await upload.reader()
        async with client.blob(copied.name, self.descriptor) as chunks:
            await upload.append(self._noticed(chunks, upload), self.size)
        if upload.size != self.size:
            raise Untrusted(f"{copied.upstream.name} sends {upload.size} bytes of the blob's {self.size}")

    async def _commit(self, repository: str, upload: Upload, index: Index, space: Space) -> None:
        async with index.turns.of(self.descriptor.digest):
            await upload.commit(self.descriptor.digest)
            async with space.writing(repository, upload) as promised:
                await index.add_blob(repository, self.descriptor.digest, self.size, promised)

    async def _noticed(self, chunks: AsyncIterator[bytes], upload: Upload) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk
            if upload.size > self._available:
                self._available = upload.size
                self._tell()

    def _tell(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def reached(self, count: int) -> int:
        """Wait for the first `count` bytes; how many may be told by now.

        Raises UpstreamError, RegistryError (no room here), OSError, FaasError.
        """
        while not self._is_here:
            if self.problem is not None:
                raise self.problem
            if (told := min(self._available, self.size - 1)) >= count > 0:
                return told
            await self._grown.wait()
        return self.size

    async def follow(self, first: int, stop: int) -> AsyncGenerator[bytes, None]:
        """Bytes `first` up to `stop`, as they come. Raises as `reached` does."""
        await self.reached(first + 1 if stop > first else 0)
        file = os.dup(self._file) if self._file >= 0 else await _opened(self._path)
        try:
            while first < stop:
                told = await self.reached(first + 1)
                piece = await asyncio.to_thread(os.pread, file, min(CHUNK, min(told, stop) - first), first)
                if not piece:
                    raise OSError(f"the blob {self.descriptor.digest} ends early")
                yield piece
                first += len(piece)
        finally:
            os.close(file)


async def _opened(path: Path) -> int:
    """A descriptor, which is not lost where nobody waits for it any more."""
    return await to_its_end(asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC), undo=os.close)
