"""`LocalImageSource`: images straight from the store, for a worker in the same process."""

from __future__ import annotations

import asyncio
from typing import BinaryIO

from faas.errors import ImageUnusable, NotFound
from faas.oci.client import for_platform
from faas.oci.descriptor import Descriptor
from faas.oci.manifest import Manifest
from faas.oci.reference import Reference
from registry.service import Registry


class LocalImageSource:
    """Implements `faas.oci.source.ImageSource`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        try:
            parsed = Reference.parse(reference)
        except ValueError as error:
            raise ImageUnusable(f"{reference}: {error}") from None
        manifest = await self._stored(parsed.repository, parsed.target)
        if manifest.is_index:
            manifest = await self._stored(parsed.repository, str(for_platform(manifest, architecture).digest))
        return manifest

    async def _stored(self, repository: str, target: str) -> Manifest:
        stored = await self._registry.index.manifest(repository, target)
        if stored is None:
            raise NotFound(f"the registry has no image {repository}:{target}")
        return Manifest.parse(stored.raw, stored.media_type, stored.digest.algorithm)

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        try:
            return await asyncio.to_thread(self._registry.blobs.path(descriptor.digest).open, "rb")
        except FileNotFoundError:
            raise NotFound(f"the registry has no blob {descriptor.digest}") from None
