"""`LocalImageSource`: images straight from the store, for a worker in the same process.

What is copied from an upstream and not here yet comes first, by the same way as for everybody who pulls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from faas.errors import ImageUnusable, NotFound, Unavailable
from faas.oci.client import for_platform
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest, parsed
from faas.oci.reference import Reference
from registry.errors import RegistryError
from registry.service import Registry
from registry.upstream.errors import Missing, UpstreamError


class LocalImageSource:
    """Implements `faas.oci.source.ImageSource`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        try:
            parsed = Reference.parse(reference)
        except ValueError as error:
            raise ImageUnusable(f"{reference}: {error}") from None
        repository = self._registry.cache.upstreams.canonical(parsed.local)
        manifest = await self._stored(repository, parsed.target)
        if manifest.is_index:
            manifest = await self._stored(repository, str(for_platform(manifest, architecture).digest))
        if not self.is_copy(repository):
            await self._check_own(repository, manifest)
        return manifest

    async def _check_own(self, repository: str, manifest: Manifest) -> None:
        """A sparse image may name what only another repository has, and a worker may have that unpacked already."""
        unseen = await self._registry.index.unseen(repository, [blob.digest for blob in manifest.blobs])
        if unseen is not None:
            raise ImageUnusable(f"{repository}@{manifest.digest} is sparse: {repository} has no blob {unseen}")

    async def _stored(self, repository: str, target: str) -> Manifest:
        with _translated():
            copy = await self._registry.cache.manifest(repository, target)
        stored = copy.stored if copy is not None else await self._registry.index.manifest(repository, target)
        if stored is None or not await self._lease(repository, stored.digest):
            raise NotFound(f"the registry has no image {repository}:{target}")
        return await parsed(stored.raw, stored.media_type, stored.digest.algorithm)

    async def _lease(self, repository: str, digest: Digest) -> bool:
        """Whether it stays until whoever deploys it says that it is held: a collection may be on its way, or a delete,
        which has its turn (see `registry.holders`)."""
        async with self._registry.index.turns.of(digest):
            return await self._registry.index.lease_manifest(repository, digest)

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        with _translated():
            download = await self._registry.cache.download(repository, descriptor.digest)
            if download is not None:
                await download.reached(download.size)
        own = self._registry.cache.upstreams.canonical(repository)
        if await self._registry.index.blob_size(own, descriptor.digest) is None:
            raise NotFound(f"the registry has no blob {descriptor.digest} in {own}")
        try:
            return await asyncio.to_thread(self._registry.blobs.path(descriptor.digest).open, "rb")
        except FileNotFoundError:
            raise NotFound(f"the registry has no blob {descriptor.digest}") from None

    def is_copy(self, repository: str) -> bool:
        return self._registry.cache.upstreams.of(repository) is not None


@contextmanager
def _translated() -> Iterator[None]:
    """An upstream's failures are the kernel's errors for a worker."""
    try:
        yield
    except Missing as error:
        raise NotFound(str(error)) from None
    except UpstreamError as error:
        raise Unavailable(str(error)) from None
    except RegistryError as error:  # no room for it here
        raise Unavailable(error.message) from None
