"""`Cache`: images of other registries as if they were here: asked for once, kept, and served when the other is away.

By digest a copy is good for ever. A tag is good until it expires; then the upstream is asked what it names now, and
where that does not answer, the old copy is served and says so. Blobs come when somebody asks for them, and only those
that a manifest names which is here: this is no open proxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from faas.background import Background
from faas.errors import Unavailable
from faas.metrics import Metrics
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import parsed
from faas.turns import Turns
from registry.index.cache import CopiedTag, Copies
from registry.index.index import Index, StoredManifest, TooDeep
from registry.space import Space
from registry.storage.base import BlobStore
from registry.upstream.client import Client
from registry.upstream.download import Download
from registry.upstream.errors import Busy, Missing, Unreachable, Untrusted
from registry.upstream.once import Once
from registry.upstream.upstream import Copied, Upstreams

log = logging.getLogger("registry.upstream")

DOWNLOADS = 16  # blobs on their way at once
QUEUE_SECONDS = 60.0  # to wait for one of those places


@dataclass(frozen=True, slots=True)
class Copy:
    """A manifest, and the headers that say how good it is."""

    stored: StoredManifest
    headers: dict[str, str] = field(default_factory=dict)


class Cache:
    """Made within a running loop; `close` it. Every method raises UpstreamError, and RegistryError where there is no
    room for a copy.

    Methods that take a repository answer None where it is no copy, or the thing is not named there.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        index: Index,
        blobs: BlobStore,
        space: Space,
        metrics: Metrics,
        stored: Callable[[], None],
    ) -> None:
        self.upstreams = upstreams
        self._index = index
        self._blobs = blobs
        self._space = space
        self._metrics = metrics
        self._stored = stored  # told that there are more bytes now
        self._copies = Copies(index.database)
        self._clients = {upstream.name: Client(upstream) for upstream in upstreams}
        self._background = Background()
        self._asking: Once[tuple[str, str], Copy] = Once(self._background)
        self._turns: Turns[tuple[str, Digest]] = Turns()
        self._coming: dict[tuple[str, Digest], Download] = {}
        self._places = asyncio.Semaphore(DOWNLOADS)

    async def close(self) -> None:
        await self._background.cancel()
        for client in self._clients.values():
            await client.close()

    # --- manifests

    async def manifest(self, repository: str, reference: str) -> Copy | None:
        """By tag or digest, from here where that is good enough, else from the upstream."""
        copied = self.upstreams.of(repository)
        if copied is None:
            return None
        is_good = ":" in reference
        if not is_good:
            tag = await self._copies.tag(copied.repository, reference)
            is_good = tag is not None and tag.is_fresh(time.time())
        if is_good and (stored := await self._index.manifest(copied.repository, reference)) is not None:
            return Copy(stored)
        work = self._by_digest if ":" in reference else self._by_tag
        return await self._asking.do((copied.repository, reference), partial(work, copied, reference))

    async def _by_digest(self, copied: Copied, digest: str) -> Copy:
        return await self._fetch(copied, digest, None)

    async def _by_tag(self, copied: Copied, name: str) -> Copy:
        tag = await self._copies.tag(copied.repository, name)
        try:
            if tag is not None and await self._still(copied, name, tag.digest):
                stored = await self._index.manifest(copied.repository, name)
                if stored is not None:
                    return Copy(stored)
            return await self._fetch(copied, name, name)
        except Missing:
            if tag is not None:
                await self._index.remove_tag(copied.repository, name)
            raise
        except (Unreachable, Untrusted):
            stored = await self._index.manifest(copied.repository, name) if tag is not None else None
            if tag is None or stored is None:
                raise
            return Copy(stored, _stale(copied, tag))

    async def _still(self, copied: Copied, tag: str, known: str) -> bool:
        """Whether the upstream says that `tag` names a manifest which is here: then it needs no bytes. `known` is the
        digest that it named the last time."""
        try:
            digest = await self._client(copied).digest(copied.name, tag)
        except Untrusted:  # an upstream without HEAD
            return False
        try:
            return digest is not None and await self._copies.confirm(copied.repository, tag, digest, _expiry(copied))
        except Unavailable as error:  # as on a full disk: what has not changed is served, and asked for again
            log.warning("%s:%s is not confirmed: %s", copied.repository, tag, error.message)
            return digest == known

    async def _fetch(self, copied: Copied, reference: str, tag: str | None) -> Copy:
        manifest = await self._client(copied).manifest(copied.name, reference)
        try:
            async with self._space.writing(copied.repository) as promised:
                await self._index.put_manifest(
                    copied.repository,
                    manifest,
                    () if tag is None else (tag,),
                    sparse=True,
                    expires_at=_expiry(copied),
                    promised=promised,
                )
        except TooDeep as error:
            raise Untrusted(f"{copied.upstream.name} sends what is not kept here: {error}") from None
        return Copy(StoredManifest(manifest.digest, manifest.media_type, manifest.raw))

    async def tags(self, repository: str, last: str, count: int) -> tuple[list[str], bool] | None:
        """(tags, whether there are more): the upstream's, or where it does not answer those that are here."""
        copied = self.upstreams.of(repository)
        if copied is None or not count:
            return None
        try:
            return await self._client(copied).tags(copied.name, last, count)
        except (Unreachable, Untrusted):
            known = await self._index.tag_names(copied.repository, last, count + 1)
            if known is None:
                raise
            return known[:count], len(known) > count

    # --- blobs

    async def descriptor(self, repository: str, digest: Digest) -> Descriptor | None:
        """What the manifests that are here say of a blob."""
        copied = self.upstreams.of(repository)
        stored = None if copied is None else await self._copies.naming(copied.repository, digest)
        if stored is None:
            return None
        manifest = await parsed(stored.raw, stored.media_type, stored.digest.algorithm)
        return next((descriptor for descriptor in manifest.blobs if descriptor.digest == digest), None)

    async def download(self, repository: str, digest: Digest) -> Download | None:
        """A blob that is on its way, or here already. It comes whether or not who asked stays."""
        copied = self.upstreams.of(repository)
        if copied is None:
            return None
        key = (copied.repository, digest)
        async with self._turns.of(key):
            if key in self._coming:
                return self._coming[key]
            descriptor = await self.descriptor(repository, digest)
            if descriptor is None:
                return None
            path = self._blobs.path(digest)
            if await self._is_here(copied.repository, descriptor):
                return Download(descriptor, path, is_here=True)
            download = self._coming[key] = Download(descriptor, path)
            self._background.start(self._bring(key, copied, download), f"fetching the blob {digest}")
            return download

    async def _is_here(self, repository: str, descriptor: Descriptor) -> bool:
        """Also where another copied repository has it: everybody may pull those, so nothing is given away."""
        digest = descriptor.digest
        if await self._blobs.size(digest) != descriptor.size:
            return False
        if await self._index.blob_size(repository, digest) == descriptor.size:
            return True
        seen_by = await self._index.seen_by(digest)
        source = next((name for name in seen_by if self.upstreams.of(name) is not None), None)
        if source is None:
            return False
        async with self._space.writing(repository) as promised:
            return await self._index.mount(repository, digest, source, promised)

    async def _bring(self, key: tuple[str, Digest], copied: Copied, download: Download) -> None:
        try:
            try:
                async with asyncio.timeout(QUEUE_SECONDS):
                    await self._places.acquire()
            except TimeoutError:
                download.fail(Busy("too many blobs are on their way; try again shortly", 5))
                return
            try:
                await download.run(self._client(copied), copied, self._index, self._space)
            finally:
                self._places.release()
            if download.problem is not None:
                log.warning("the blob %s of %s did not come: %s", key[1], copied.repository, download.problem)
            self._metrics.registry_bytes.labels("in").inc(download.received)
            self._stored()
        finally:
            del self._coming[key]

    def _client(self, copied: Copied) -> Client:
        return self._clients[copied.upstream.name]


def _expiry(copied: Copied) -> float:
    return time.time() + copied.upstream.expire.total_seconds()


def _stale(copied: Copied, tag: CopiedTag) -> dict[str, str]:
    """RFC 9111 §5.1 and the old §5.5 (RFC 7234): clients show warnings, and may decide by the age."""
    name, age = copied.upstream.name, max(0, int(time.time() - tag.checked_at))
    return {"Age": str(age), "Warning": f'110 - "{name} does not answer; this copy was good {age} s ago"'}
