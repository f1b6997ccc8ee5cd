"""`Space`: who may bring how many bytes, decided before they are taken: the disk's room, a namespace's quota, and how
many uploads may be open.

What an upload will have at its end is promised to it while it comes in, so that uploads side by side cannot each take
the same room. Where a namespace has a quota, promises and new rows take turns, and nothing is counted twice or not at
all; where it has none, nothing is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from faas.oci.reference import namespace_of
from faas.turns import Turns
from registry.errors import RegistryError
from registry.index.quotas import OverQuota, Quota, Quotas, Usage, check
from registry.storage.base import BlobStore, Disk, Upload

STEP = 4 << 20  # bytes promised at once to a body without a length
RESERVE_BYTES, RESERVE_SHARE = 64 << 20, 0.01  # left free for the database and everybody else: the larger one,
SMALL_SHARE = 0.05  # but no more than this of a small disk
SESSIONS = 10_000  # open uploads in all, each a file and 2 KB of memory
NAMESPACE_SESSIONS = 1_000
RETRY_SECONDS = 60

Told = Callable[[int], Awaitable[None]]


def reserve(total: int) -> int:
    """Bytes of a disk that no upload gets."""
    return int(max(total * RESERVE_SHARE, min(RESERVE_BYTES, total * SMALL_SHARE)))


def short(disk: Disk, promised: int, wanted: int) -> int:
    """How many bytes are lacking for `wanted` more beside what is promised to others; 0: there is room."""
    return max(0, wanted - (disk.free - reserve(disk.total) - promised))


class Space:
    def __init__(self, quotas: Quotas, blobs: BlobStore) -> None:
        self._quotas = quotas
        self._blobs = blobs
        self._turns: Turns[str] = Turns()

    async def begin(self, repository: str) -> Upload:
        """One more upload, of which nothing is promised yet. Raises TOOMANYREQUESTS, DENIED."""
        namespace, sessions = namespace_of(repository), self._blobs.sessions()
        own = sum(upload.owner == namespace for upload in sessions)
        if own >= NAMESPACE_SESSIONS or len(sessions) >= SESSIONS:
            words = f"too many open uploads ({own} in {namespace}, {len(sessions)} in all): finish or cancel some"
            raise RegistryError("TOOMANYREQUESTS", words, headers={"Retry-After": str(RETRY_SECONDS)})
        await self._disk(0)
        if (quota := self._quotas.of(namespace)) is not None:
            async with self._turn(namespace):
                check(namespace, quota, (await self._used(namespace)).plus(1))
        upload = await self._blobs.begin(repository)
        upload.owner = namespace
        return upload

    @asynccontextmanager
    async def taking(self, repository: str, upload: Upload, length: int | None) -> AsyncIterator[Told]:
        """Room for `length` more bytes of `upload`, promised while the block runs. Raises DENIED before any of them
        is taken: the upload stays as it is.

        Without a length what is yielded must be told each piece; where that crosses the quota the upload is thrown
        away, since nobody could end it.
        """
        before, came = upload.size, 0

        async def told(count: int) -> None:
            nonlocal came
            came += count
            if length is None and before + came > upload.expected:
                await self._disk(0)  # the reserve is for others, also where a body does not say how long it is
                try:
                    await self._promise(namespace_of(repository), upload, before + came, STEP)
                except RegistryError:
                    await upload.cancel()
                    raise

        if length != 0:  # to end an upload takes no room
            await self._disk(length or 0, upload)
        try:
            await self._promise(namespace_of(repository), upload, before + (length or 0))
            yield told
        finally:
            upload.expected = upload.size

    @asynccontextmanager
    async def writing(self, repository: str, upload: Upload | None = None) -> AsyncIterator[int]:
        """New rows are written in the block, given what it yields: the bytes promised to others. `upload` ends with
        it: its bytes are a row now. Raises DENIED for the block's OverQuota."""
        namespace = namespace_of(repository)
        async with self._turn(namespace):
            try:
                yield self._promised(namespace, upload)
            finally:
                if upload is not None:
                    upload.end()

    async def _disk(self, wanted: int, upload: Upload | None = None) -> None:
        """Raises DENIED with 507 where the disk has no room for them; else they are promised to `upload`."""
        disk = await self._blobs.disk()
        promised = sum(max(0, other.expected - other.size) for other in self._blobs.sessions())
        if lacking := short(disk, promised, wanted):
            words = f"no room on the registry's disk for {wanted:,} bytes more: {lacking:,} are lacking"
            hint = "delete images and collect garbage, or give the disk more room"
            raise RegistryError("DENIED", f"{words}; {hint}", status=507)
        if upload is not None:
            upload.expected = upload.size + wanted

    async def _promise(self, namespace: str, upload: Upload, size: int, more: int = 0) -> None:
        """`upload` may have `size` bytes, and up to `more` besides. Raises DENIED."""
        quota = self._quotas.of(namespace)
        if quota is None:
            upload.owner, upload.expected = namespace, size + more
            return
        async with self._turn(namespace):
            used = await self._used(namespace, upload)
            check(namespace, quota, used.plus(size))
            upload.owner, upload.expected = namespace, size + max(0, min(more, _room(quota, used.plus(size))))

    @asynccontextmanager
    async def _turn(self, namespace: str) -> AsyncIterator[None]:
        try:
            async with self._turns.of(namespace):
                yield
        except OverQuota as error:
            raise _denied(error) from None

    async def _used(self, namespace: str, upload: Upload | None = None) -> Usage:
        return (await self._quotas.usage_of(namespace)).plus(self._promised(namespace, upload))

    def _promised(self, namespace: str, besides: Upload | None = None) -> int:
        """What the namespace's open uploads have, or may come to have."""
        if self._quotas.of(namespace) is None:
            return 0
        open_ones = (upload for upload in self._blobs.sessions() if upload.owner == namespace)
        return sum(max(upload.size, upload.expected) for upload in open_ones if upload is not besides)


def _room(quota: Quota, used: Usage) -> int:
    room = quota.room(used)
    assert room is not None, "a quota limits something"
    return room


def _denied(error: OverQuota) -> RegistryError:
    words = (
        f"the namespace {error.namespace} may hold {error.limit:,} bytes ({error.kind}), and would have {error.used:,}"
    )
    detail = {"namespace": error.namespace, "kind": error.kind, "limit": error.limit, "wanted": error.used}
    return RegistryError("DENIED", f"{words}: delete images, or ask an administrator for a larger quota", detail)
