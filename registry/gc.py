"""Garbage collection while serving: incremental, crash-safe, without a lock over everything.

Rows go first and files last: manifests that nothing names, then the blobs of each repository that nothing needs, then,
blob by blob and in the digest's own turn, the file and its row. A crash in between leaves a file without a row, or a
row that says `leaving`; the next collection goes on from there. What a client was told to be here is leased: a push
never races a collection.
"""

from __future__ import annotations

import logging

from faas.oci.digest import Digest
from registry.holders import Holders
from registry.index.garbage import Collected, Garbage
from registry.index.index import Index
from registry.storage.base import BlobStore

log = logging.getLogger("registry.gc")

KEEP_SECONDS = 30 * 86_400.0  # a manifest that has no tag any more
STRAY_SECONDS = 3600.0  # a file without a row may be about to get one


async def collect(
    index: Index,
    blobs: BlobStore,
    holders: Holders | None,
    *,
    dry_run: bool = False,
    keep_seconds: float = KEEP_SECONDS,
    stray_seconds: float = STRAY_SECONDS,
) -> Collected:
    """One collection; what it took, or with `dry_run` would take. Where `holders` fails, nothing is deleted."""
    held = await holders.held() if holders is not None else {}
    garbage = Garbage(index.database, keep_seconds)
    if dry_run:
        found = await garbage.preview(held)
        found.files = len(await _strays(garbage, blobs, stray_seconds))
        return found
    found = Collected(manifests=await garbage.drop_manifests(held))
    await garbage.unlink_blobs()
    while leaving := await garbage.leaving():
        for digest, size in leaving:
            async with index.turns.of(digest):
                if await garbage.still_leaving(digest):
                    await blobs.delete(digest)
                    await garbage.gone(digest)
                    found.blobs += 1
                    found.bytes += size
    for digest in await _strays(garbage, blobs, stray_seconds):
        async with index.turns.of(digest):
            if await garbage.unknown([digest]):
                await blobs.delete(digest)
                found.files += 1
    if found != Collected():
        log.info("collected %d manifests, %d blobs of %d bytes", found.manifests, found.blobs, found.bytes)
    return found


async def _strays(garbage: Garbage, blobs: BlobStore, seconds: float) -> list[Digest]:
    return [digest async for some in blobs.listing(seconds) for digest in await garbage.unknown(some)]
