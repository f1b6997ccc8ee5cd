"""`Contents`: everything that images consist of: their manifests, children before parents, and their blobs.

Walks what others wrote, so everything is bounded and checked before it is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from faas.errors import ImageUnusable
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import INDEX_DEPTH, Manifest

MANIFESTS = 10_000  # in all
MANIFESTS_BYTES = 64 << 20  # of all manifests: they are held in memory

Fetch = Callable[[Descriptor], Awaitable[Manifest]]


@dataclass
class Contents:
    """`manifests` in an order in which a registry takes them; `blobs` are those that must be there."""

    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    _raw_bytes: int = 0

    async def add(self, root: Manifest, fetch: Fetch) -> None:
        """`root` and what it names; `fetch` gets the entry of an index. Raises ImageUnusable."""
        await self._add(root, fetch, 0)

    async def _add(self, manifest: Manifest, fetch: Fetch, depth: int) -> None:
        if manifest.digest in self.manifests:
            return
        if depth > INDEX_DEPTH:
            raise ImageUnusable(f"indexes are nested more than {INDEX_DEPTH} deep")
        self._raw_bytes += len(manifest.raw)
        if len(self.manifests) >= MANIFESTS or self._raw_bytes > MANIFESTS_BYTES:
            raise ImageUnusable(f"more than {MANIFESTS} manifests, or {MANIFESTS_BYTES} bytes of them")
        for entry in manifest.manifests:
            if entry.digest in self.manifests:
                same_size(entry, len(self.manifests[entry.digest].raw))
                continue
            child = await fetch(entry)
            same_size(entry, len(child.raw))
            await self._add(child, fetch, depth + 1)
        for blob in manifest.blobs:
            same_size(blob, self.blobs.setdefault(blob.digest, blob).size)
        self.manifests[manifest.digest] = manifest

    def descriptors(self) -> Iterator[Descriptor]:
        """Of everything, each digest once: manifests, then blobs. A manifest that is a blob too is only the first."""
        yield from (manifest.descriptor() for manifest in self.manifests.values())
        yield from (blob for digest, blob in self.blobs.items() if digest not in self.manifests)


def same_size(descriptor: Descriptor, size: int) -> None:
    """Raises ImageUnusable where what is named so has another size."""
    if descriptor.size != size:
        raise ImageUnusable(f"{descriptor.digest} is named with {descriptor.size} bytes, but it has {size}")
