"""`LayerStore`: unpacked layers under `layers/<chain id>`, made once each and never changed.

A layer is unpacked into a temporary folder by a jailed child process, flushed to disk, and renamed: a folder that is
there is whole. Its name is the chain id (image-spec, config.md), since a layer's whiteouts make sense only above the
layers that it was made for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from faas.errors import FaasError, ImageUnusable, NotFound
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import CONFIG_BYTES, ImageConfig, Manifest, chain_id
from faas.oci.reference import Reference
from faas.oci.source import ImageSource

T = TypeVar("T")

LAYER_TYPES = {
    media_types.OCI_LAYER,
    media_types.OCI_LAYER_GZIP,
    media_types.OCI_LAYER_ZSTD,
    media_types.DOCKER_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
}
LAYERS = 120  # more do not fit an overlay's mount options on older kernels
_UNPACK = Path(__file__).with_name("unpack.py")


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What one layer may cost. `ratio` is unpacked to compressed, beyond the first 64 MiB."""

    bytes: int = 10 << 30
    entries: int = 500_000
    depth: int = 200
    ratio: int = 200
    seconds: int = 300


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    """Folders from the bottom layer to the top one, by short names that fit a mount's options."""

    digest: Digest
    config: ImageConfig
    layers: tuple[Path, ...]


class LayerStore:
    """Layers of images from `source`, under `root`. Blocking work runs in `threads`."""

    def __init__(
        self,
        root: Path,
        source: ImageSource,
        architecture: str,
        threads: ThreadPoolExecutor,
        limits: UnpackLimits | None = None,
    ) -> None:
        self._root = root
        self._source = source
        self._architecture = architecture
        self._threads = threads
        self._limits = limits or UnpackLimits()
        self._unpacking: dict[Digest, asyncio.Task[Path]] = {}

    def open(self) -> None:
        """Blocking. Remove what an interrupted unpacking left."""
        for folder in (self._root, self._root / "l"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._root / "tmp", ignore_errors=True)
        (self._root / "tmp").mkdir(mode=0o700)

    async def image(self, reference: str) -> UnpackedImage:
        """The image of `repository@digest`, with every layer here. Raises ImageUnusable with the reason."""
        try:
            repository = Reference.parse(reference).repository
            manifest = await self._source.manifest(reference, self._architecture)
            config = await self._config(repository, manifest)
        except (NotFound, ValueError) as error:
            raise ImageUnusable(f"{reference}: {error}") from None
        self._check(reference, manifest, config)
        folders = []
        for index, descriptor in enumerate(manifest.layers):
            chain = chain_id(config.diff_ids[: index + 1])
            folders.append(await self._layer(repository, descriptor, config.diff_ids[index], chain))
        return UnpackedImage(manifest.digest, config, tuple(folders))

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

    async def _layer(self, repository: str, descriptor: Descriptor, diff_id: Digest, chain: Digest) -> Path:
        """One layer's folder; concurrent callers share the work, and none of them can cancel it for the others."""
        short = self._root / "l" / chain.hex[:16]
        if short.exists():
            return short
        task = self._unpacking.get(chain)
        if task is None:
            task = asyncio.create_task(self._unpack(repository, descriptor, diff_id, chain, short))
            self._unpacking[chain] = task
            task.add_done_callback(lambda _: self._unpacking.pop(chain, None))
        return await asyncio.shield(task)

    async def _unpack(
        self, repository: str, descriptor: Descriptor, diff_id: Digest, chain: Digest, short: Path
    ) -> Path:
        temporary = self._root / "tmp" / secrets.token_hex(8)
        final = self._root / chain.hex
        try:
            blob = await self._source.open_blob(repository, descriptor)
        except NotFound:
            raise ImageUnusable(f"the layer {descriptor.digest} is gone") from None
        with blob:
            await self._in_thread(lambda: self._unpack_blob(blob, temporary, descriptor, diff_id))
        await self._in_thread(lambda: _publish(temporary, final, short))
        return short

    def _unpack_blob(self, blob: BinaryIO, folder: Path, descriptor: Descriptor, diff_id: Digest) -> None:
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        try:
            outcome = unpack(blob, folder, self._limits, descriptor.digest.algorithm)
            if outcome["digest"] != descriptor.digest.hex:
                raise ImageUnusable(f"the layer {descriptor.digest} has another content than its digest says")
            if diff_id.algorithm == "sha256" and outcome["diff_id"] != diff_id.hex:
                raise ImageUnusable(f"the layer {descriptor.digest} does not unpack to its diff id {diff_id}")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def unpack(blob: BinaryIO, folder: Path, limits: UnpackLimits, algorithm: str = "sha256") -> dict[str, str]:
    """Blocking. Unpack `blob` into the empty `folder` by a jailed child. Raises ImageUnusable with the reason."""
    command = [sys.executable, "-I", str(_UNPACK), str(folder), json.dumps({**asdict(limits), "algorithm": algorithm})]
    try:
        done = subprocess.run(command, stdin=blob, capture_output=True, timeout=limits.seconds, env={})
    except subprocess.TimeoutExpired:
        raise ImageUnusable(f"unpacking a layer took more than {limits.seconds} s") from None
    except OSError as error:
        raise FaasError(f"cannot start the unpacking: {error}") from None
    try:
        outcome = json.loads(done.stdout)
    except ValueError:
        raise ImageUnusable(f"unpacking a layer ended with {done.returncode}: {_last_line(done.stderr)}") from None
    if "error" in outcome:
        raise ImageUnusable(outcome["error"])
    return dict(outcome)


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"


def _publish(temporary: Path, final: Path, short: Path) -> None:
    """Flush, then rename: power loss leaves the whole folder or none (zero-byte files are the classic result)."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)
    try:
        temporary.rename(final)
    except OSError:  # it is there already: the short name was lost in a crash
        shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(FileExistsError):
        short.symlink_to(Path("..") / final.name)
