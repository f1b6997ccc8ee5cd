"""`BlobStore`: bytes by digest, and the sessions that bring them in."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from faas.oci.digest import Digest


class DigestMismatch(Exception):
    """The bytes do not have the digest that the client named."""


class SizeExceeded(Exception):
    """More bytes came than were announced."""


class UploadGone(Exception):
    """The session was committed, cancelled or thrown away meanwhile."""


class Condition(enum.Enum):
    """What reading a blob from end to end showed."""

    WHOLE = "whole"
    DAMAGED = "damaged"  # another size, or other bytes
    UNREADABLE = "unreadable"  # the system failed to read it, which may pass
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of the file system that the blobs lie on."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that was taken out of service; `file` is its place in the data folder."""

    file: str
    bytes: int


class Upload(Protocol):
    """One upload session: bytes are appended, then committed under their digest, or thrown away.

    Whoever appends, commits or cancels holds `lock`: one at a time.
    """

    id: str
    size: int  # bytes that are stored
    owner: str  # the namespace that its bytes count for; "" until a request says so
    expected: int  # its size when the request in hand has ended, as far as that is known
    lock: asyncio.Lock

    async def append(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> int:
        """Store more; returns the new size. Raises SizeExceeded past `limit` further bytes, UploadGone, OSError.

        What came before a failure is stored, and `size` says how much that is.
        """
        ...

    async def gather(self, chunks: AsyncIterator[bytes], limit: int | None = None) -> bytes:
        """As `append`, but what came last, some of 1 MiB at most, is returned for `commit` to store."""
        ...

    async def reader(self) -> int:
        """A descriptor of the session's file, to read it while it grows: it stays good whatever becomes of the session.
        The caller closes it."""
        ...

    async def commit(self, digest: Digest, tail: bytes = b"") -> int:
        """With `tail` behind what is stored, durable under `digest` when this returns (the size); `end` it when its
        row stands.

        Raises DigestMismatch, and the session goes on; OSError: where `tail` could not be stored it goes on too, else
        it is over: what could not be flushed once may be lost although a second attempt says that it was.
        """
        ...

    async def cancel(self) -> None: ...

    def end(self) -> None:
        """The session is over, and counts no more."""
        ...


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

    async def check(self, digest: Digest, size: int, pace: Callable[[int], Awaitable[None]]) -> Condition:
        """Read the blob from the disk and compare it with its name; `pace` is told each piece's bytes, and may wait."""
        ...

    async def quarantine(self, digest: Digest) -> None:
        """Take the blob's file out of service and keep it; durable when this returns. No error where it is absent."""
        ...

    async def quarantined(self) -> list[Quarantined]:
        """The oldest first, a bounded number of them."""
        ...

    async def disk(self) -> Disk: ...

    def sessions(self) -> Collection[Upload]:
        """Those that are open, but for such from before a restart that nobody has touched since."""
        ...

    async def begin(self, repository: str) -> Upload:
        """A session that brings a blob to `repository`, and to no other one."""
        ...

    async def resume(self, upload_id: str, repository: str) -> Upload | None:
        """An open session of `repository`, also one from before a restart."""
        ...

    async def sweep(self, older_than: float) -> int:
        """Throw away sessions that nobody has touched for so many seconds; how many."""
        ...
