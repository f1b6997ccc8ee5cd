"""`LayerStore`: unpacked layers under `layers/<chain id>`, made once each and never changed.

A layer is unpacked into a temporary folder by a jailed child process, flushed to disk, and renamed: a folder that is
there is whole. Its name is the chain id (image-spec, config.md), since a layer's whiteouts make sense only above the
layers that it was made for. Beside it stands which blobs were seen to unpack to it: whoever names a stack without
having one of these has to show that his unpacks to it, so that nobody reads a layer by knowing its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from faas.errors import ImageUnusable, NotFound
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest, chain_id
from faas.oci.reference import Reference
from faas.oci.source import ImageSource
from worker.layers.unpacker import Unpacker, UnpackLimits

T = TypeVar("T")

LAYER_TYPES = {
    media_types.OCI_LAYER,
    media_types.OCI_LAYER_GZIP,
    media_types.OCI_LAYER_ZSTD,
    media_types.DOCKER_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
SHORT = "l"  # the folder of short names among the layers
CLOSE_SECONDS = 10.0  # for what follows the end of a child: its half of a layer is removed
WANTED_SECONDS = 3600.0  # a deploy, from the first look at its image until its revision is written
ALGORITHMS = {64: "sha256", 128: "sha512"}  # by the length of a layer's name
LAYERS = 120  # more do not fit the one page of options that mount(2) takes


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    """Folders from the bottom layer to the top one, by short names that fit a mount's options."""

    digest: Digest
    config: ImageConfig
    layers: tuple[Path, ...]


class LayerStore:
    """Layers of images from `source`, under `root`, with short names in `links`. Blocking work runs in `threads`."""

    def __init__(
        self,
        root: Path,
        links: Path,
        source: ImageSource,
        architecture: str,
        threads: ThreadPoolExecutor,
        limits: UnpackLimits | None = None,
    ) -> None:
        self._root = root
        self._links = links
        self._source = source
        self._architecture = architecture
        self._threads = threads
        self._limits = limits or UnpackLimits()
        self._unpacker = Unpacker()
        self._unpacking: dict[tuple[Digest, Digest], asyncio.Task[int]] = {}
        self._short: dict[Digest, Path] = {}
        self._names = itertools.count()  # a short name never comes to mean another layer
        self._wanted_at: dict[Digest, float] = {}  # seconds, monotonic

    def open(self) -> None:
        """Blocking. Make the folders; remove what an interrupted unpacking left. Short names start afresh."""
        for name in ("tmp", SHORT):
            shutil.rmtree(self._root / name, ignore_errors=True)
        for folder in (self._root, self._root / "tmp", self._root / "blobs", self._root / SHORT, self._links):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._short.clear()

    async def close(self) -> None:
        """End what is being unpacked: whoever waits for it gets Unavailable."""
        self._unpacker.close()
        if self._unpacking:
            await asyncio.wait(list(self._unpacking.values()), timeout=CLOSE_SECONDS)

    async def image(self, reference: str) -> UnpackedImage:
        """The image of `repository@digest`, with every layer here. Raises ImageUnusable with the reason."""
        repository, manifest, config = await self._described(reference)
        folders, left = [], self._limits.bytes
        for index, descriptor in enumerate(manifest.layers):
            diff_ids = config.diff_ids[: index + 1]
            left = max(0, left - await self._layer(repository, descriptor, diff_ids, left))
            folders.append(self._link(chain_id(diff_ids)))
        return UnpackedImage(manifest.digest, config, tuple(folders))

    async def _described(self, reference: str) -> tuple[str, Manifest, ImageConfig]:
        try:
            repository = Reference.parse(reference).local
            manifest = await self._source.manifest(reference, self._architecture)
            config = await self._config(repository, manifest)
        except (NotFound, ValueError) as error:
            raise ImageUnusable(f"{reference}: {error}") from None
        self._check(reference, manifest, config)
        return repository, manifest, config

    async def names(self, reference: str) -> tuple[ImageConfig, list[Digest]]:
        """The image's config and its layers' names, whether they are here or not. Raises ImageUnusable."""
        _, _, config = await self._described(reference)
        return config, [chain_id(config.diff_ids[:count]) for count in range(1, len(config.diff_ids) + 1)]

    async def collect(self, kept: Collection[Digest]) -> int:
        """Remove the layers that are not `kept` and that nobody wanted lately; how many bytes that gave."""
        removed = 0
        for name, notes in (await self._in_thread(self._listed)).items():
            # Looked at and taken away in one step of the loop: whoever wants it comes before this, or after it.
            if name not in kept and not self._is_wanted(name):
                doomed = self._take_away(name, notes)
                removed += await self._in_thread(partial(_remove, doomed))
        self._wanted_at = {name: at for name, at in self._wanted_at.items() if self._is_wanted(name)}
        return removed

    def _listed(self) -> dict[Digest, list[Path]]:
        """Blocking. The layers that are here, each with its notes."""
        names = [folder.name for folder in self._root.iterdir()]
        found = {Digest(ALGORITHMS[len(name)], name): list[Path]() for name in names if len(name) in ALGORITHMS}
        for note in (self._root / "blobs").iterdir():
            name = note.name.partition("-")[0]
            if len(name) in ALGORITHMS:
                found.setdefault(Digest(ALGORITHMS[len(name)], name), []).append(note)
        return found

    def _is_wanted(self, name: Digest) -> bool:
        """Lately, or at this moment."""
        lately = time.monotonic() - self._wanted_at.get(name, -math.inf) < WANTED_SECONDS
        return lately or any(chain == name for chain, _ in self._unpacking)

    def _take_away(self, name: Digest, notes: Iterable[Path]) -> Path:
        """The notes go first: a layer without its note is unpacked anew, a note without its layer would be believed."""
        self._wanted_at.pop(name, None)
        short = self._short.pop(name, None)
        links = () if short is None else (short, self._root / SHORT / short.name)
        for path in (*notes, *links):
            path.unlink(missing_ok=True)
        doomed = self._root / "tmp" / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):  # only a note was left
            (self._root / name.hex).rename(doomed)
        return doomed

    def named(self, layers: Collection[Path]) -> set[Digest]:
        """The names of layers that an image has."""
        return {name for name, short in self._short.items() if short in layers}

    def has(self, layer: Path) -> bool:
        """Whether this layer of an image has not been collected."""
        return layer in self._short.values()

    def found(self, name: Digest) -> Path | None:
        """The layer of ours that `add` made under this name, if it is here."""
        return self._link(name) if (self._root / name.hex).is_dir() else None

    async def add(self, name: Digest, fill: Callable[[Path], None]) -> Path:
        """A layer of our own making, whole or not there: `fill` puts files into a folder, in a thread."""
        temporary = self._root / "tmp" / secrets.token_hex(8)

        def make() -> None:
            temporary.mkdir()
            temporary.chmod(0o755)
            try:
                fill(temporary)
                _publish(temporary, self._root / name.hex)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

        await self._in_thread(make)
        return self._link(name)

    async def _config(self, repository: str, manifest: Manifest) -> ImageConfig:
        if manifest.config is None or manifest.config.size > CONFIG_BYTES:
            raise ValueError("the image has no usable config")
        blob = await self._source.open_blob(repository, manifest.config)
        with blob:
            raw = await self._in_thread(lambda: blob.read(CONFIG_BYTES + 1))
        if Digest.of(raw, manifest.config.digest.algorithm) != manifest.config.digest:
            raise ValueError("the image's config does not have its digest")
        return ImageConfig.parse(raw)

    def _check(self, reference: str, manifest: Manifest, config: ImageConfig) -> None:
        if config.os != "linux" or config.architecture != self._architecture:
            raise ImageUnusable(
                f"{reference} is for {config.os}/{config.architecture or 'no architecture'}, "
                f"this machine is linux/{self._architecture}",
                hint=f"build it for linux/{self._architecture}",
            )
        if not manifest.layers or len(manifest.layers) > LAYERS:
            raise ImageUnusable(f"{reference} has {len(manifest.layers)} layers; 1 to {LAYERS} are possible")
        if len(config.diff_ids) != len(manifest.layers):
            raise ImageUnusable(f"{reference} names {len(manifest.layers)} layers but {len(config.diff_ids)} diff ids")
        for layer in manifest.layers:
            if layer.media_type not in LAYER_TYPES:
                raise ImageUnusable(f"{reference} has a layer of the unknown type {layer.media_type[:200]!r}")
        size = sum(layer.size for layer in manifest.layers)
        if size > self._limits.bytes:
            raise ImageUnusable(f"{reference} has {size} bytes; at most {self._limits.bytes} are possible")

    async def _layer(self, repository: str, descriptor: Descriptor, diff_ids: tuple[Digest, ...], left: int) -> int:
        """Bring the layer of the last diff id here, of at most `left` bytes: its bytes.

        Concurrent callers share the work, and none can cancel it for the others.
        """
        chain = chain_id(diff_ids)
        self._wanted_at[chain] = time.monotonic()
        if (size := _size(self._seen(chain, descriptor))) is not None:
            return size
        key = (chain, descriptor.digest)
        task = self._unpacking.get(key)
        if task is None:
            task = asyncio.create_task(self._unpack(repository, descriptor, diff_ids, chain, left))
            self._unpacking[key] = task
            task.add_done_callback(lambda _: self._unpacking.pop(key, None))
        return await asyncio.shield(task)

    def _seen(self, chain: Digest, descriptor: Descriptor) -> Path:
        return self._root / "blobs" / f"{chain.hex}-{descriptor.digest.hex}"

    def _link(self, chain: Digest) -> Path:
        """A short name: all of an image's layers must fit the options of one mount.

        The same name is in the folder of layers, for who sees that at another place (`…/l/1f`).
        """
        self._wanted_at[chain] = time.monotonic()
        short = self._short.get(chain)
        if short is None:
            name = f"{next(self._names):x}"
            short = self._links / name
            (self._root / SHORT / name).symlink_to(f"../{chain.hex}")
            short.symlink_to(self._root / chain.hex)
            self._short[chain] = short
        return short

    async def _unpack(
        self, repository: str, descriptor: Descriptor, diff_ids: tuple[Digest, ...], chain: Digest, left: int
    ) -> int:
        temporary = self._root / "tmp" / secrets.token_hex(8)
        lowers = [self._root / chain_id(diff_ids[:n]).hex for n in range(len(diff_ids) - 1, 0, -1)]
        try:
            blob = await self._source.open_blob(repository, descriptor)
        except NotFound:
            raise ImageUnusable(f"the layer {descriptor.digest} is gone") from None
        limits = replace(self._limits, bytes=left)
        with blob:
            size = await self._in_thread(
                lambda: self._unpack_blob(blob, temporary, descriptor, diff_ids[-1], lowers, limits)
            )
        seen = self._seen(chain, descriptor)

        def publish() -> None:
            _publish(temporary, self._root / chain.hex)
            seen.write_text(str(size))

        await self._in_thread(publish)
        return size

    def _unpack_blob(
        self,
        blob: BinaryIO,
        folder: Path,
        descriptor: Descriptor,
        diff_id: Digest,
        lowers: list[Path],
        limits: UnpackLimits,
    ) -> int:
        folder.mkdir()
        folder.chmod(0o755)
        algorithms = (descriptor.digest.algorithm, diff_id.algorithm)
        try:
            outcome = self._unpacker.unpack(blob, folder, limits, algorithms, lowers)
            if outcome["digest"] != descriptor.digest.hex:
                raise ImageUnusable(f"the layer {descriptor.digest} has another content than its digest says")
            if outcome["diff_id"] != diff_id.hex:
                raise ImageUnusable(f"the layer {descriptor.digest} does not unpack to its diff id {diff_id}")
            return int(outcome["bytes"])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _remove(folder: Path) -> int:
    """Blocking. How many bytes that gave."""
    size = sum(entry.lstat().st_blocks * 512 for entry in folder.rglob("*"))
    shutil.rmtree(folder, ignore_errors=True)
    return size


def _size(seen: Path) -> int | None:
    """The bytes of a layer that the blob was seen to unpack to; None where it was not, or the note was cut short."""
    try:
        return int(seen.read_text())
    except (OSError, ValueError):
        return None


def _publish(temporary: Path, final: Path) -> None:
    """Flush, then rename: power loss leaves the whole folder or none (zero-byte files are the classic result)."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)
    try:
        temporary.rename(final)
    except OSError:  # unpacked from another blob of the same content
        shutil.rmtree(temporary, ignore_errors=True)
