"""Images in files: an OCI layout (folder or tar) and the archive that `docker save` writes.

Nothing is unpacked to a path that the archive names: members are read through, one by one, and checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import posixpath
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from faas.errors import ImageUnusable, InvalidInput
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, MANIFEST_BYTES, Manifest
from faas.oci.platform import architecture

CHUNK = 1 << 20
LAYER_BYTES = 10 << 30  # of one layer, as it is stored
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError)
_ABOUT_THE_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
ABOUT_BYTES = 1 << 20
MEMBERS = 100_000
LINKS = 8  # from one member to the next
_ARCHIVES = "docker save, or an OCI layout"
_WHOLE = "write the archive again: docker save, or skopeo copy"


class _Header(tarfile.TarInfo):
    """A member that is text about the next one is held in memory: refused where it is large."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _ABOUT_THE_NEXT and header.size > ABOUT_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


class Files:
    """The members of a folder or a tar archive, by name. May be read by several threads."""

    def __init__(self, path: Path) -> None:
        self._folder = path if path.is_dir() else None
        self._lock = threading.Lock()  # the members of an archive share one file with one position
        self._members: dict[str, tarfile.TarInfo] = {}
        self.compressed = False  # going back in it means to read it from the start
        if self._folder is None:
            self._tar = self._opened(path)

    def _opened(self, path: Path) -> tarfile.TarFile:
        if not path.is_file():  # a pipe would be waited for
            raise InvalidInput(f"{path} is no image archive: it is not a file", hint=_ARCHIVES)
        try:
            try:
                tar = tarfile.open(path, "r:", tarinfo=_Header)  # noqa: SIM115 - closed by `close`
            except tarfile.ReadError as error:
                try:
                    tar = tarfile.open(path, "r:*", tarinfo=_Header)  # noqa: SIM115
                except tarfile.ReadError:  # lists what it tried, for a developer of tarfile
                    raise error from None
                self.compressed = True
        except _DAMAGED as error:
            raise InvalidInput(f"{path} is no image archive: {error}", hint=_ARCHIVES) from None
        try:
            with _reading("its list of files"):
                for member in tar:
                    if len(self._members) == MEMBERS:
                        raise tarfile.ReadError(f"more than {MEMBERS} members")
                    self._members[posixpath.normpath(member.name)] = member  # `tar -c .` writes ./name
        except BaseException:
            tar.close()
            raise
        return tar

    def close(self) -> None:
        if self._folder is None:
            self._tar.close()

    def __contains__(self, name: str) -> bool:
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a plain file of this name; None where there is none."""
        if self._folder is None:
            member = self._member(name)
            return None if member is None else member.size
        path = self._path(name)
        return None if path is None else path.stat().st_size

    def position(self, name: str) -> int:
        """Where it lies among the others: reading in this order is the fastest."""
        member = None if self._folder else self._member(name)
        return 0 if member is None else member.offset

    def _open(self, name: str) -> IO[bytes] | None:
        """What it reads from an archive that is cut off raises one of `_DAMAGED`."""
        if self._folder is None:
            member = self._member(name)
            return None if member is None else self._tar.extractfile(member)
        path = self._path(name)
        return None if path is None else path.open("rb")

    def _path(self, name: str) -> Path | None:
        """Where a link leads must be inside too."""
        assert self._folder is not None
        path = self._folder / name
        inside = path.resolve().is_relative_to(self._folder.resolve())
        return path if inside and path.is_file() else None

    def _member(self, name: str) -> tarfile.TarInfo | None:
        """`docker save` writes a layer that two images share once, and links to it."""
        for _ in range(LINKS):
            member = self._members.get(posixpath.normpath(name))
            if member is None or member.isreg():
                return member
            if not (member.issym() or member.islnk()):
                return None
            name = posixpath.join(posixpath.dirname(name), member.linkname) if member.issym() else member.linkname
        return None

    def read(self, name: str, limit: int) -> bytes:
        """Raises InvalidInput where it is missing or larger than `limit`."""
        return b"".join(self.chunks(name, limit))

    def blob(self, digest: Digest, limit: int) -> bytes:
        """A blob of a layout, checked. Raises InvalidInput, ImageUnusable."""
        data = self.read(blob_name(digest), limit)
        if Digest.of(data, digest.algorithm) != digest:
            raise ImageUnusable(f"the blob {digest} is not what its digest says")
        return data

    def chunks(self, name: str, limit: int) -> Iterator[bytes]:
        """A file's content. Raises InvalidInput where it is missing, cut off, or larger than `limit`."""
        with _reading(name):
            member = self._open(name)
        if member is None:
            hint = "docker save and skopeo copy write whole images; docker export writes only the files of one"
            raise InvalidInput(f"the archive has no file {_shown(name)}", hint=hint)
        size = 0
        with member:
            while True:
                with _reading(name), self._lock:
                    chunk = member.read(CHUNK)
                if not chunk:
                    return
                size += len(chunk)
                if size > limit:
                    raise InvalidInput(f"{_shown(name)} is larger than {limit} bytes")
                yield chunk


def _shown(name: str) -> str:
    """What an archive calls its files is not for a terminal to obey."""
    return name if name.isprintable() else ascii(name)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise InvalidInput(f"the archive is damaged or cut off at {_shown(name)}: {error}", hint=_WHOLE) from None


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


def blob_name(digest: Digest) -> str:
    """Where a layout keeps it (image-layout.md)."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _from_layout(files: Files) -> ArchivedImage:
    """image-spec, image-layout.md."""
    from faas.oci.client import for_platform

    index = json.loads(files.read("index.json", MANIFEST_BYTES))
    entries = _images(files, [Descriptor.from_json(row) for row in index["manifests"]])
    if len(entries) > 1:
        own = [e for e in entries if e.platform and e.platform[:2] == ("linux", architecture())]
        if len(own) != 1:
            raise InvalidInput(
                "the archive holds several images",
                hint="faas image import takes them all; or write one of them with skopeo copy",
            )
        entries = own
    manifest = Manifest.parse(files.blob(entries[0].digest, MANIFEST_BYTES), entries[0].media_type)
    if manifest.is_index:
        child = for_platform(manifest, architecture())
        manifest = Manifest.parse(files.blob(child.digest, MANIFEST_BYTES), child.media_type)
    if manifest.config is None:
        raise InvalidInput("the archive's image has no config")
    config = files.blob(manifest.config.digest, CONFIG_BYTES)
    names = {layer.digest: blob_name(layer.digest) for layer in manifest.layers}
    return ArchivedImage(files, config, manifest.config.media_type, manifest.layers, names)


def _images(files: Files, entries: list[Descriptor]) -> list[Descriptor]:
    """Without the signatures and the like of the others."""
    if len(entries) < 2:
        return entries
    parsed = [(e, Manifest.parse(files.blob(e.digest, MANIFEST_BYTES), e.media_type)) for e in entries]
    named = {e.digest for e in entries}
    return [e for e, m in parsed if m.subject is None or m.subject.digest not in named]


def _from_docker(files: Files) -> ArchivedImage:
    images = json.loads(files.read("manifest.json", MANIFEST_BYTES))
    if len(images) != 1:
        raise InvalidInput(f"the archive holds {len(images)} images", hint="save one image at a time")
    return docker_image(files, images[0])


def docker_image(files: Files, row: dict[str, Any]) -> ArchivedImage:
    """`docker save`: a row of manifest.json names the config and the layers' tar files, uncompressed."""
    config = files.read(row["Config"], CONFIG_BYTES)
    layers, names = [], {}
    for name in row["Layers"]:
        hasher, size = hashlib.sha256(), 0
        for chunk in files.chunks(name, LAYER_BYTES):
            hasher.update(chunk)
            size += len(chunk)
        digest = Digest("sha256", hasher.hexdigest())
        layers.append(Descriptor(media_types.OCI_LAYER, digest, size))
        names[digest] = name
    return ArchivedImage(files, config, media_types.OCI_CONFIG, tuple(layers), names)
