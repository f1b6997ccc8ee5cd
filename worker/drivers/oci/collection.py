"""Collecting layers: what no image that is needed, and nothing that runs, is made of goes from this machine."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from faas.oci.digest import Digest
from worker.drivers.base import PreparedImage
from worker.drivers.oci import bytecode
from worker.drivers.oci.stems import Stems
from worker.layers.store import LayerStore, UnpackedImage


async def collect(layers: LayerStore, stems: Stems, held: Collection[str], used: Iterable[PreparedImage]) -> int:
    """Remove the layers of all other images than `held` and `used`; bytes. What a deploy has just brought here stays.

    Raises ImageUnusable where one that is held cannot be looked up: then nothing is removed.
    """
    kept: set[Digest] = set()
    for reference in held:
        config, names = await layers.names(reference)
        kept |= {*names, *bytecode.names(config, names)}
    for image in used:
        assert isinstance(image.handle, UnpackedImage)
        kept |= layers.named(image.handle.layers)
    removed = await layers.collect(kept)
    stems.forget(layers.has)
    return removed
