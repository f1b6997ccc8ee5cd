"""`DevImages`: the images of `faas dev`, for the worker alone: one of the registry, and code on it that is only here.

They are in no registry, so that nothing of them stays there; a deploy cannot name them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from faas.build.image import function_config
from faas.build.layer import Layer
from faas.errors import ImageUnusable, NotFound
from faas.oci import labels, media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest
from faas.oci.platform import architecture
from faas.oci.reference import BASES, Reference
from faas.oci.source import ImageSource
from faas.spec import FunctionSpec

REPOSITORY = "dev"  # `dev/NAME`: one per function


@dataclass(frozen=True, slots=True)
class _Image:
    manifest: Manifest
    below: str  # the repository that has the layers below the code
    files: dict[Digest, Path]


class DevImages:
    """Implements `faas.oci.source.ImageSource` over another one. `folder` keeps a folder per function."""

    def __init__(self, source: ImageSource, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._images: dict[str, _Image] = {}  # by reference

    def folder(self, label: str) -> Path:
        return self._folder / label

    def left(self) -> list[str]:
        """Blocking. Labels of functions that a server before this one has left here."""
        try:
            return sorted(path.name for path in self._folder.iterdir())
        except FileNotFoundError:
            return []

    async def make(self, label: str, spec: FunctionSpec, below: str, code: Layer) -> str:
        """The reference of `below` (an image of the registry, by digest) with `code` on it. Raises ImageUnusable."""
        manifest, config = await self._read(below)
        base = config.labels.get(labels.BASE) or (below if below.startswith(BASES) else "")
        made = function_config(config, spec, [code], base)
        raw = dataclasses.replace(made, labels={**made.labels, labels.DEV: "1"}).to_json()
        digest = Digest.of(raw)
        path = self.folder(label) / f"{digest.hex}.json"
        await asyncio.to_thread(path.write_bytes, raw)
        written = Descriptor(media_types.OCI_CONFIG, digest, len(raw))
        image = Manifest.image(written, [*manifest.layers, code.descriptor])
        reference = f"{REPOSITORY}/{label}@{image.digest}"
        repository = Reference.parse(below).local
        self._images[reference] = _Image(image, repository, {digest: path, code.digest: code.path})
        return reference

    async def _read(self, below: str) -> tuple[Manifest, ImageConfig]:
        try:
            manifest = await self._source.manifest(below, architecture())
            if manifest.config is None or manifest.config.size > CONFIG_BYTES:
                raise ValueError("it has no usable config")
            with await self._source.open_blob(Reference.parse(below).local, manifest.config) as blob:
                return manifest, ImageConfig.parse(await asyncio.to_thread(blob.read, CONFIG_BYTES))
        except (NotFound, ValueError) as error:
            raise ImageUnusable(f"{below}: {error}") from None

    def keep(self, label: str, references: set[str]) -> list[Path]:
        """Forget the function's other images; the files that none needs any more, to be removed."""
        repository = f"{REPOSITORY}/{label}@"
        gone = [name for name in self._images if name.startswith(repository) and name not in references]
        files = {path for name in gone for path in self._images.pop(name).files.values()}
        return sorted(files - {path for image in self._images.values() for path in image.files.values()})

    def forget(self, label: str) -> None:
        """Blocking. All of a function."""
        self.keep(label, set())
        shutil.rmtree(self.folder(label), ignore_errors=True)

    # ImageSource

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        image = self._images.get(reference)
        return await self._source.manifest(reference, architecture) if image is None else image.manifest

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        for reference, image in self._images.items():
            if reference.startswith(f"{repository}@") and descriptor in image.manifest.blobs:
                path = image.files.get(descriptor.digest)
                if path is None:
                    return await self._source.open_blob(image.below, descriptor)
                try:
                    return await asyncio.to_thread(path.open, "rb")
                except FileNotFoundError:
                    raise NotFound(f"the code {descriptor.digest} is gone") from None
        return await self._source.open_blob(repository, descriptor)

    def is_copy(self, repository: str) -> bool:
        return self._source.is_copy(repository)
