"""`BlobStore`: bytes by digest, and the sessions that bring them in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Protocol

from faas.oci.digest import Digest


class DigestMismatch(Exception):
    """The bytes do not have the digest that the client named."""


class SizeExceeded(Exception):
    """More bytes came than were announced."""


class UploadGone(Exception):
    """The session was committed, cancelled or thrown away meanwhile."""


class Upload(Protocol):
    """One upload session: bytes are appended, then committed under their digest, or thrown away.

    Whoever appends, commits or cancels holds `lock`: one at a time.
    """

    id: str
    size: int  # bytes that are stored
    lock: asyncio.Lock

    async def append(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> int:
        """Store more; returns the new size. Raises SizeExceeded past `limit` further bytes, UploadGone, OSError.

        What came before a failure is stored, and `size` says how much that is.
        """
        ...

    async def commit(self, digest: Digest) -> int:
        """Durable under `digest` when this returns (the size). Raises DigestMismatch; the session then still stands."""
        ...

    async def cancel(self) -> None: ...


class BlobStore(Protocol):
    """Blobs are whole or absent: nothing half-written is ever visible."""

    async def open(self) -> None: ...

    def close(self) -> None: ...

    async def size(self, digest: Digest) -> int | None:
        """Bytes, or None where the blob is absent."""
        ...

    async def missing(self, digests: Iterable[Digest]) -> Digest | None:
        """The first of these whose bytes are not here."""
        ...

    def path(self, digest: Digest) -> Path:
        """The blob's file, for sendfile and for readers on this machine."""
        ...

    async def delete(self, digest: Digest) -> None:
        """No error where it is absent."""
        ...

    def listing(self, older_than: float) -> AsyncIterator[list[Digest]]:
        """All blobs that have been here for so many seconds, some at a time."""
        ...

    async def begin(self) -> Upload: ...

    async def resume(self, upload_id: str) -> Upload | None:
        """An open session, also one from before a restart."""
        ...

    async def sweep(self, older_than: float) -> int:
        """Throw away sessions that nobody has touched for so many seconds; how many."""
        ...
