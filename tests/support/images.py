"""Images made in a test: layers, config and manifest in memory, served as an `ImageSource`."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from faas.errors import NotFound
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest
from faas.oci.platform import architecture
from faas.oci.reference import Reference


def tar_of(files: Mapping[str, bytes | str | None], mode: int = 0o755) -> bytes:
    """A tar archive: bytes are files, a text is a symlink's target, None a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


class MemoryImages:
    """Implements `faas.oci.source.ImageSource`."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[str, Manifest] = {}

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor(media_type, digest, len(data))

    def add(self, repository: str, layers: list[bytes], *, compress: bool = False, **config: object) -> str:
        """An image of these tar archives; `config` are `ImageConfig`'s fields. Returns `repository@digest`."""
        kind = media_types.OCI_LAYER_GZIP if compress else media_types.OCI_LAYER
        descriptors = [self.blob(gzip.compress(layer, mtime=0) if compress else layer, kind) for layer in layers]
        values: dict[str, object] = {"architecture": architecture(), **config}
        values["diff_ids"] = tuple(Digest.of(layer) for layer in layers)
        image = ImageConfig(**values)  # type: ignore[arg-type]
        manifest = Manifest.image(self.blob(image.to_json(), media_types.OCI_CONFIG), descriptors)
        self.manifests[str(manifest.digest)] = manifest
        return f"{repository}@{manifest.digest}"

    async def manifest(self, reference: str, architecture: str) -> Manifest:
        try:
            return self.manifests[Reference.parse(reference).target]
        except KeyError:
            raise NotFound(f"no image {reference}") from None

    def is_copy(self, repository: str) -> bool:
        return False

    async def open_blob(self, repository: str, descriptor: Descriptor) -> BinaryIO:
        if descriptor.digest not in self.blobs:
            raise NotFound(f"no blob {descriptor.digest}")
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        file.write(self.blobs[descriptor.digest])
        file.seek(0)
        return file  # type: ignore[return-value]


SKELETON: dict[str, bytes | str | None] = {
    **dict.fromkeys(("proc", "dev", "sys", "tmp", "etc", "bin", "var", "var/task")),
    "etc/passwd": b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/resolv.conf": b"",
    "etc/hosts": b"",
}


def program_layer(programs: Mapping[str, Path]) -> bytes:
    """A root with these (static) programs: path inside → file here."""
    return tar_of({**SKELETON, **{name: path.read_bytes() for name, path in programs.items()}})
