"""Images in files: an OCI layout (folder or tar) and the archive that `docker save` writes.

Nothing is unpacked to a path that the archive names: members are read through, one by one, and checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from faas.errors import ImageUnusable, InvalidInput
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, MANIFEST_BYTES, Manifest
from faas.oci.platform import architecture

CHUNK = 1 << 20
LAYER_BYTES = 10 << 30  # of one layer, as it is stored
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
_WHOLE = "write the archive again: docker save, or skopeo copy"


class Files:
    """The members of a folder or a tar archive, by name."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else None
        try:
            self._tar = None if self._folder else tarfile.open(path, "r:*")  # noqa: SIM115 - closed by `close`
        except _DAMAGED as error:
            raise InvalidInput(f"{path} is no image archive: {error}", hint="docker save, or an OCI layout") from None

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    def __contains__(self, name: str) -> bool:
        with _reading(name):
            member = self.open(name)
        if member is not None:
            member.close()
        return member is not None

    def open(self, name: str) -> IO[bytes] | None:
        """A plain file of this name, or None. What it reads from an archive that is cut off raises `_DAMAGED`."""
        if self._folder is not None:
            path = self._folder / name
            inside = path.resolve().is_relative_to(self._folder.resolve())
            return path.open("rb") if inside and path.is_file() else None
        assert self._tar is not None
        for written in (name, f"./{name}"):  # the second from `tar -c .`
            with contextlib.suppress(KeyError):
                return self._tar.extractfile(written)
        return None

    def read(self, name: str, limit: int) -> bytes:
        """Raises InvalidInput where it is missing or larger than `limit`."""
        return b"".join(self.chunks(name, limit))

    def blob(self, digest: Digest, limit: int) -> bytes:
        """A blob of a layout, checked. Raises InvalidInput, ImageUnusable."""
        data = self.read(_blob(digest), limit)
        if Digest.of(data, digest.algorithm) != digest:
            raise ImageUnusable(f"the blob {digest} is not what its digest says")
        return data

    def chunks(self, name: str, limit: int) -> Iterator[bytes]:
        """A file's content. Raises InvalidInput where it is missing, cut off, or larger than `limit`."""
        with _reading(name):
            member = self.open(name)
        if member is None:
            hint = "docker save and skopeo copy write whole images; docker export writes only the files of one"
            raise InvalidInput(f"the archive has no {name}", hint=hint)
        size = 0
        with member:
            while True:
                with _reading(name):
                    chunk = member.read(CHUNK)
                if not chunk:
                    return
                size += len(chunk)
                if size > limit:
                    raise InvalidInput(f"{name} is larger than {limit} bytes")
                yield chunk


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise InvalidInput(f"the archive is damaged or cut off at {name}: {error}", hint=_WHOLE) from None


@dataclass(slots=True)
class ArchivedImage:
    """One image of an archive; `names` maps a layer's digest to its member."""

    files: Files
    config: bytes
    config_type: str
    layers: tuple[Descriptor, ...]
    names: dict[Digest, str]

    def __enter__(self) -> ArchivedImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    def spooled(self, layer: Descriptor) -> Any:
        """Blocking. A layer's bytes in a named temporary file, checked against its digest."""
        spool = tempfile.NamedTemporaryFile(prefix="faas-layer-")  # noqa: SIM115 - the caller closes it
        hasher = layer.digest.hasher()
        try:
            for chunk in self.files.chunks(self.names[layer.digest], min(layer.size, LAYER_BYTES)):
                hasher.update(chunk)
                spool.write(chunk)
            spool.flush()
            if hasher.hexdigest() != layer.digest.hex:
                raise ImageUnusable(f"the layer {layer.digest} is not what its digest says")
        except BaseException:
            spool.close()
            raise
        return spool


def open_image(path: Path) -> ArchivedImage:
    """Blocking. The image in `path`; of several, the one for this machine's architecture.

    Raises InvalidInput, ImageUnusable.
    """
    files = Files(path)
    try:
        if "index.json" in files and "oci-layout" in files:
            return _from_layout(files)
        return _from_docker(files)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        files.close()
        raise InvalidInput(f"{path} is no valid image archive: {error}") from None
    except BaseException:
        files.close()
        raise


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _from_layout(files: Files) -> ArchivedImage:
    """image-spec, image-layout.md."""
    from faas.oci.client import for_platform

    index = json.loads(files.read("index.json", MANIFEST_BYTES))
    entries = [Descriptor.from_json(row) for row in index["manifests"]]
    if len(entries) > 1:
        own = [e for e in entries if e.platform and e.platform[:2] == ("linux", architecture())]
        if len(own) != 1:
            raise InvalidInput("the archive holds several images", hint="write one of them with skopeo copy")
        entries = own
    manifest = Manifest.parse(files.blob(entries[0].digest, MANIFEST_BYTES), entries[0].media_type)
    if manifest.is_index:
        child = for_platform(manifest, architecture())
        manifest = Manifest.parse(files.blob(child.digest, MANIFEST_BYTES), child.media_type)
    if manifest.config is None:
        raise InvalidInput("the archive's image has no config")
    config = files.blob(manifest.config.digest, CONFIG_BYTES)
    names = {layer.digest: _blob(layer.digest) for layer in manifest.layers}
    return ArchivedImage(files, config, manifest.config.media_type, manifest.layers, names)


def _from_docker(files: Files) -> ArchivedImage:
    """`docker save`: manifest.json names the config and the layers' tar files, uncompressed."""
    images = json.loads(files.read("manifest.json", MANIFEST_BYTES))
    if len(images) != 1:
        raise InvalidInput(f"the archive holds {len(images)} images", hint="save one image at a time")
    config = files.read(images[0]["Config"], CONFIG_BYTES)
    layers, names = [], {}
    for name in images[0]["Layers"]:
        hasher, size = hashlib.sha256(), 0
        for chunk in files.chunks(name, LAYER_BYTES):
            hasher.update(chunk)
            size += len(chunk)
        digest = Digest("sha256", hasher.hexdigest())
        layers.append(Descriptor(media_types.OCI_LAYER, digest, size))
        names[digest] = name
    return ArchivedImage(files, config, media_types.OCI_CONFIG, tuple(layers), names)
