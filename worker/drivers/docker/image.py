"""Images for an engine, as the archives that `docker load` takes; and the pause image, which is made of bytes here.

The engine gets an image's files and nothing else of it. What runs, as whom and with which variables is the
`SandboxSpec`'s to say, as with every driver; a VOLUME would be disk without a limit beside the read-only root, a
HEALTHCHECK a program that nobody asked for, a label an order to whoever else watches this engine.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import struct
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import IO, BinaryIO, TypeVar, cast

import zstandard

from faas.background import Background
from faas.errors import ImageUnusable, NotFound
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig
from faas.oci.platform import architecture
from faas.oci.reference import Reference
from faas.oci.source import ImageSource
from worker.drivers.base import PreparedImage
from worker.drivers.docker.threads import Threads
from worker.layers.store import LAYER_TYPES

CHUNK = 1 << 20
PACKERS = 2  # images packed at once: they take seconds
LAYER_BYTES = 10 << 30
# `for (;;) pause();` as machine code, since no compiler may be asked of the user's machine.
_CODE = {
    "amd64": (0x3E, bytes.fromhex("b8220000000f05ebf7")),  # mov eax,34; syscall; jmp back
    "arm64": (0xB7, bytes.fromhex("480980d2000080d2010080d2020080d2030080d2010000d4faffff17")),  # ppoll(0,…)
}
_BASE = 0x400000
T = TypeVar("T")


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
    """An image as `docker load` takes it, in a file without a name: gone when it is closed, or lost."""

    tag: str
    config: ImageConfig  # as its author wrote it
    file: IO[bytes]


class Images:
    """Each image is brought to the engine once, whoever asks for it; a caller that goes away does not stop that."""

    def __init__(self, source: ImageSource, load: Callable[[Archive], Awaitable[None]]) -> None:
        self._source = source
        self._load = load
        self._threads = Threads(PACKERS, "docker images")
        self._work = Background()
        self._locks: dict[str, asyncio.Lock] = {}
        self._prepared: dict[str, PreparedImage] = {}

    async def prepare(self, reference: str) -> PreparedImage:
        if known := self._prepared.get(reference):
            return known
        return await self._work.complete(self._prepare(reference), f"the loading of {reference}")

    def forget(self, held: Collection[str]) -> set[str]:
        """Images other than these are brought to the engine again when they are needed; the tags of those that no
        longer mean anything here."""
        gone = {reference: self._prepared.pop(reference) for reference in self._prepared.keys() - set(held)}
        tags = {str(image.handle) for image in gone.values()}
        return tags - {str(image.handle) for image in self._prepared.values()}

    async def bring_back(self, image: PreparedImage) -> None:
        """Somebody has removed it from the engine: `docker image prune -a` takes what no container uses."""
        if self._prepared.get(image.reference) is image:
            del self._prepared[image.reference]
        await self.prepare(image.reference)

    async def close(self) -> None:
        await self._work.cancel()
        self._threads.shutdown()

    async def _prepare(self, reference: str) -> PreparedImage:
        """As an archive, so that the engine needs no address or password of ours."""
        async with self._locks.setdefault(reference, asyncio.Lock()):
            if reference not in self._prepared:
                made = await archive(self._source, reference, architecture(), self._threads)
                with made.file:
                    await self._load(made)
                self._prepared[reference] = PreparedImage(reference, made.config, made.tag)
            return self._prepared[reference]


async def archive(source: ImageSource, reference: str, machine: str, threads: Executor) -> Archive:
    """The archive of `repository@digest`; what blocks runs in `threads`. Raises ImageUnusable with the reason."""

    async def in_thread(work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    try:
        repository = Reference.parse(reference).local
        manifest = await source.manifest(reference, machine)
        if manifest.config is None or manifest.config.size > CONFIG_BYTES:
            raise ValueError("the image has no usable config")
        with await source.open_blob(repository, manifest.config) as blob:
            raw = await in_thread(lambda: blob.read(CONFIG_BYTES + 1))
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
    files = ImageConfig(config.architecture, config.os, config.diff_ids).to_json()
    tag = f"faas.local/{repository}:{Digest.of(files).hex[:32]}"
    spools: list[IO[bytes]] = []
    try:
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            blob = await source.open_blob(repository, layer)
            spools.append(await in_thread(partial(_plain, blob, layer, diff_id)))
        return Archive(tag, config, await in_thread(lambda: _written(tag, files, spools)))
    finally:
        for spool in spools:
            spool.close()


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


def _written(tag: str, config: bytes, layers: list[IO[bytes]]) -> IO[bytes]:
    """Blocking. The archive: config, layers, and manifest.json, which engines read first."""
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).encode()
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
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
    file.seek(0)
    return file
