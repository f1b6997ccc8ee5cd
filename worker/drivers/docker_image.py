"""Images for an engine, as the archives that `docker load` takes; and the pause image, which is made of bytes here."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from faas.errors import ImageUnusable, NotFound
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig
from faas.oci.reference import Reference
from faas.oci.source import ImageSource
from worker.drivers.base import architecture
from worker.layers.store import LAYER_TYPES

CHUNK = 1 << 20
LAYER_BYTES = 10 << 30
# `for (;;) pause();` as machine code, since no compiler may be asked of the user's machine.
_CODE = {
    "amd64": (0x3E, bytes.fromhex("b8220000000f05ebf7")),  # mov eax,34; syscall; jmp back
    "arm64": (0xB7, bytes.fromhex("480980d2000080d2010080d2020080d2030080d2010000d4faffff17")),  # ppoll(0,…)
}
_BASE = 0x400000


def _pause_program() -> bytes:
    """A static ELF executable of one segment (System V ABI, "ELF header" and "Program header")."""
    machine, code = _CODE[architecture()]
    size = 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        2,
        machine,
        1,
        _BASE + 120,
        64,
        0,
        0,
        64,
        56,
        1,
        64,
        0,
        0,
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


def _tar(files: dict[str, bytes], mode: int = 0o644) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            target.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def pause_image() -> tuple[str, bytes]:
    """(tag, archive) of an image whose only program waits for ever."""
    layer = _tar({"pause": _pause_program()}, 0o755)
    config = ImageConfig(architecture(), diff_ids=(Digest.of(layer),), entrypoint=("/pause",)).to_json()
    tag = f"faas.local/pause:{hashlib.sha256(layer).hexdigest()[:12]}"
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    return tag, _tar({"config.json": config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


@dataclass(frozen=True, slots=True)
class Archive:
    """An image as `docker load` takes it, in a file that `discard` removes."""

    tag: str
    config: ImageConfig
    path: Path

    def open(self) -> BinaryIO:
        return self.path.open("rb")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


async def archive(source: ImageSource, reference: str, machine: str) -> Archive:
    """The archive of `repository@digest`. Raises ImageUnusable with the reason."""
    try:
        repository = Reference.parse(reference).repository
        manifest = await source.manifest(reference, machine)
        if manifest.config is None or manifest.config.size > CONFIG_BYTES:
            raise ValueError("the image has no usable config")
        with await source.open_blob(repository, manifest.config) as blob:
            raw = await asyncio.to_thread(blob.read, CONFIG_BYTES + 1)
        if Digest.of(raw, manifest.config.digest.algorithm) != manifest.config.digest:
            raise ValueError("the image's config does not have its digest")
        config = ImageConfig.parse(raw)
    except (NotFound, ValueError) as error:
        raise ImageUnusable(f"{reference}: {error}") from None
    if config.os != "linux" or config.architecture != machine:
        built_for = f"{config.os}/{config.architecture or 'no architecture'}"
        raise ImageUnusable(f"{reference} is for {built_for}, this machine is linux/{machine}")
    if not manifest.layers or len(manifest.layers) != len(config.diff_ids):
        raise ImageUnusable(f"{reference} has {len(manifest.layers)} layers and {len(config.diff_ids)} diff ids")
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise ImageUnusable(f"{reference} has a layer of the unknown type {layer.media_type[:200]!r}")
    tag = f"faas.local/{repository}:{manifest.digest.hex[:32]}"
    spools: list[IO[bytes]] = []
    try:
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            blob = await source.open_blob(repository, layer)
            spools.append(await asyncio.to_thread(_plain, blob, layer, diff_id))
        path = await asyncio.to_thread(_written, tag, raw, spools)
    finally:
        for spool in spools:
            spool.close()
    return Archive(tag, config, path)


def _plain(blob: BinaryIO, layer: Descriptor, diff_id: Digest) -> IO[bytes]:
    """Blocking. A layer, decompressed into a temporary file, checked against its diff id and bounded."""
    with blob:
        first = blob.read(4)
        blob.seek(0)
        stream: IO[bytes]
        if first[:2] == b"\x1f\x8b":
            stream = cast("IO[bytes]", gzip.GzipFile(fileobj=blob))
        elif first == b"\x28\xb5\x2f\xfd":
            stream = zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)
        else:
            stream = blob
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        hasher, size = diff_id.hasher(), 0
        try:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if size > LAYER_BYTES:
                    raise ImageUnusable(f"the layer {layer.digest} unpacks to more than {LAYER_BYTES} bytes")
                hasher.update(chunk)
                spool.write(chunk)
        except (OSError, EOFError, zstandard.ZstdError) as error:
            raise ImageUnusable(f"the layer {layer.digest} is broken: {error}") from None
    if hasher.hexdigest() != diff_id.hex:
        raise ImageUnusable(f"the layer {layer.digest} does not unpack to its diff id {diff_id}")
    spool.seek(0)
    return spool


def _written(tag: str, config: bytes, layers: list[IO[bytes]]) -> Path:
    """Blocking. The archive: config, layers, and manifest.json, which engines read first."""
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).encode()
    with tempfile.NamedTemporaryFile(prefix="faas-image-", delete=False) as file:
        with tarfile.open(fileobj=file, mode="w") as target:
            for name, content in (("config.json", config), ("manifest.json", manifest)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                target.addfile(entry, io.BytesIO(content))
            for name, layer in zip(names, layers, strict=True):
                entry = tarfile.TarInfo(name)
                entry.size = layer.seek(0, io.SEEK_END)
                layer.seek(0)
                target.addfile(entry, layer)
        return Path(file.name)
