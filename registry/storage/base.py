"""`BlobStore`: bytes by digest, and the sessions that bring them in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from faas.oci.digest import Digest


class Upload(Protocol):
    """One upload session: bytes are appended, then committed under their digest, or thrown away."""

    id: str
    size: int  # bytes that are stored

    async def append(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> int:
        """Store more; returns the new size. Raises DigestMismatch never, SizeExceeded past `limit` further bytes."""
        ...

    async def commit(self, digest: Digest) -> int:
        """Durable under `digest` when this returns (the size). Raises DigestMismatch; the session then still stands."""
        ...

    async def cancel(self) -> None: ...


class DigestMismatch(Exception):
    """The bytes do not have the digest that the client named."""


class BlobStore(Protocol):
    """Blobs are whole or absent: nothing half-written is ever visible."""

    async def size(self, digest: Digest) -> int | None:
        """Bytes, or None where the blob is absent."""
        ...

    def path(self, digest: Digest) -> Path:
        """The blob's file, for sendfile and for readers on this machine."""
        ...

    async def begin(self) -> Upload: ...

    async def resume(self, upload_id: str) -> Upload | None:
        """An open session, also one from before a restart."""
        ...

    async def put(self, data: bytes) -> Digest:
        """A small blob at once, durably."""
        ...

    async def delete(self, digest: Digest) -> None:
        """No error where it is absent."""
        ...

    async def total(self) -> int:
        """Bytes of all blobs."""
        ...

    async def sweep(self, older_than: float) -> int:
        """Throw away sessions that nobody has touched for so many seconds; how many."""
        ...
