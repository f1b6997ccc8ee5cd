"""`Bundle`: all images of a folder or a tar archive with their names, whoever wrote it: an OCI layout (image-spec,
image-layout.md) or the archive of `docker save`. Nothing of it is believed before it has been checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from faas.errors import ImageUnusable, InvalidInput
from faas.oci.archive import LAYER_BYTES, Files, blob_name, docker_image
from faas.oci.contents import MANIFESTS_BYTES, same_size
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import MANIFEST_BYTES, Manifest

REF_NAME = "org.opencontainers.image.ref.name"  # image-spec, annotations.md: the tag, or more
_CONTAINERD_NAME = "io.containerd.image.name"  # the whole name, by builders that write only the tag into the other
NAMES = (REF_NAME, _CONTAINERD_NAME)
INDEX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class NamedManifest:
    """`name` is as it is written: `repository:tag`, `repository@digest`, only a tag, or nothing."""

    name: str
    manifest: Manifest


@dataclass(slots=True)
class Bundle:
    """Use it as a context manager; its methods block."""

    files: Files
    images: Sequence[NamedManifest] = ()
    _names: dict[Digest, str] = field(default_factory=dict)  # members of `docker save`
    _small: dict[Digest, bytes] = field(default_factory=dict)  # its configs

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Raises InvalidInput, ImageUnusable."""
        bundle = cls(Files(path))
        try:
            if "index.json" in bundle.files and "oci-layout" in bundle.files:
                bundle._read_layout()
            else:
                bundle._read_docker()
        except (ValueError, KeyError, TypeError, LookupError, AttributeError, RecursionError) as error:
            bundle.files.close()
            raise InvalidInput(f"{path} is no valid image archive: {error}") from None
        except BaseException:
            bundle.files.close()
            raise
        return bundle

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    def manifest(self, descriptor: Descriptor) -> Manifest:
        """What an index's entry names, checked. Raises InvalidInput, ImageUnusable."""
        raw = self.files.blob(descriptor.digest, MANIFEST_BYTES)
        try:
            return Manifest.parse(raw, descriptor.media_type, descriptor.digest.algorithm)
        except ValueError as error:
            raise ImageUnusable(f"{descriptor.digest}: {error}") from None

    def check_size(self, descriptor: Descriptor) -> None:
        """A blob is here, with the size that its descriptor says. Raises InvalidInput, ImageUnusable."""
        if descriptor.digest in self._small:
            return
        size = self.files.size(self._name(descriptor))
        if size is None:
            raise InvalidInput(
                f"the blob {descriptor.digest} is missing: there is no file {self._name(descriptor)}",
                hint="write the whole image again",
            )
        if size != descriptor.size or size > LAYER_BYTES:
            raise ImageUnusable(f"the blob {descriptor.digest} should have {descriptor.size} bytes, but has {size}")

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, not checked. Raises InvalidInput where they end early."""
        if (small := self._small.get(descriptor.digest)) is not None:
            return iter((small,))
        return self.files.chunks(self._name(descriptor), descriptor.size)

    def position(self, descriptor: Descriptor) -> int:
        return self.files.position(self._name(descriptor))

    def _name(self, descriptor: Descriptor) -> str:
        return self._names.get(descriptor.digest) or blob_name(descriptor.digest)

    def _read_layout(self) -> None:
        rows = _list(json.loads(self.files.read("index.json", MANIFEST_BYTES))["manifests"])
        images, total = [], 0
        for descriptor in (Descriptor.from_json(row) for row in rows):
            manifest = self.manifest(descriptor)
            same_size(descriptor, len(manifest.raw))
            total += len(manifest.raw)
            if total > MANIFESTS_BYTES:
                raise ImageUnusable(f"the manifests that index.json names have more than {MANIFESTS_BYTES} bytes")
            images.append(NamedManifest(_written(descriptor), manifest))
        self.images = images

    def _read_docker(self) -> None:
        images: list[NamedManifest] = []
        for row in _list(json.loads(self.files.read("manifest.json", MANIFEST_BYTES))):
            saved = docker_image(self.files, row)
            config = Descriptor(saved.config_type, Digest.of(saved.config), len(saved.config))
            manifest = Manifest.image(config, list(saved.layers))
            self._small[config.digest] = saved.config
            self._names.update(saved.names)
            images += [NamedManifest(str(name), manifest) for name in row.get("RepoTags") or ("",)]
        self.images = images


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > INDEX_ENTRIES:
        raise ValueError(f"it must be a list of at most {INDEX_ENTRIES} images")
    return value


def _written(descriptor: Descriptor) -> str:
    return descriptor.annotations.get(_CONTAINERD_NAME) or descriptor.annotations.get(REF_NAME, "")
