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
import errno
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from faas.errors import FaasError, ImageUnusable, NotFound, Unavailable
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
LAYERS = 120  # more do not fit the one page of options that mount(2) takes
OUR_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}  # not the archive's
_PACKAGES = Path(__file__).resolve().parent.parent.parent  # where the child finds this package


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
        self._unpacking: dict[tuple[Digest, Digest], asyncio.Task[None]] = {}
        self._short: dict[Digest, Path] = {}

    def open(self) -> None:
        """Blocking. Make the folders; remove what an interrupted unpacking left. Short names start afresh."""
        shutil.rmtree(self._root / "tmp", ignore_errors=True)
        for folder in (self._root, self._root / "tmp", self._root / "blobs", self._links):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._short.clear()

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
            folders.append(await self._layer(repository, descriptor, config.diff_ids[: index + 1]))
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
        size = sum(layer.size for layer in manifest.layers)
        if size > self._limits.bytes:
            raise ImageUnusable(f"{reference} has {size} bytes; at most {self._limits.bytes} are possible")

    async def _layer(self, repository: str, descriptor: Descriptor, diff_ids: tuple[Digest, ...]) -> Path:
        """The layer of the last diff id; concurrent callers share the work, and none can cancel it for the others."""
        chain = chain_id(diff_ids)
        if not self._seen(chain, descriptor).exists():
            key = (chain, descriptor.digest)
            task = self._unpacking.get(key)
            if task is None:
                task = asyncio.create_task(self._unpack(repository, descriptor, diff_ids, chain))
                self._unpacking[key] = task
                task.add_done_callback(lambda _: self._unpacking.pop(key, None))
            await asyncio.shield(task)
        return self._link(chain)

    def _seen(self, chain: Digest, descriptor: Descriptor) -> Path:
        return self._root / "blobs" / f"{chain.hex}-{descriptor.digest.hex}"

    def _link(self, chain: Digest) -> Path:
        """A short name: all of an image's layers must fit the options of one mount."""
        short = self._short.get(chain)
        if short is None:
            short = self._links / f"{len(self._short):x}"
            short.symlink_to(self._root / chain.hex)
            self._short[chain] = short
        return short

    async def _unpack(
        self, repository: str, descriptor: Descriptor, diff_ids: tuple[Digest, ...], chain: Digest
    ) -> None:
        temporary = self._root / "tmp" / secrets.token_hex(8)
        lowers = [self._root / chain_id(diff_ids[:n]).hex for n in range(len(diff_ids) - 1, 0, -1)]
        try:
            blob = await self._source.open_blob(repository, descriptor)
        except NotFound:
            raise ImageUnusable(f"the layer {descriptor.digest} is gone") from None
        with blob:
            await self._in_thread(lambda: self._unpack_blob(blob, temporary, descriptor, diff_ids[-1], lowers))
        seen = self._seen(chain, descriptor)
        await self._in_thread(lambda: _publish(temporary, self._root / chain.hex, seen))

    def _unpack_blob(
        self, blob: BinaryIO, folder: Path, descriptor: Descriptor, diff_id: Digest, lowers: list[Path]
    ) -> None:
        folder.mkdir()
        folder.chmod(0o755)
        algorithms = (descriptor.digest.algorithm, diff_id.algorithm)
        try:
            outcome = unpack(blob, folder, self._limits, algorithms, lowers)
            if outcome["digest"] != descriptor.digest.hex:
                raise ImageUnusable(f"the layer {descriptor.digest} has another content than its digest says")
            if outcome["diff_id"] != diff_id.hex:
                raise ImageUnusable(f"the layer {descriptor.digest} does not unpack to its diff id {diff_id}")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def unpack(
    blob: BinaryIO,
    folder: Path,
    limits: UnpackLimits,
    algorithms: tuple[str, str] = ("sha256", "sha256"),
    lowers: Sequence[Path] = (),
) -> dict[str, Any]:
    """Blocking. Unpack `blob` into the empty `folder` by a jailed child. Raises ImageUnusable with the reason.

    `algorithms` are those of the blob's digest and of the diff id. `lowers` are the layers below, the top one first:
    a hard link may point into them.
    """
    with contextlib.ExitStack() as stack:
        descriptors = [os.open(lower, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for lower in lowers]
        for descriptor in descriptors:
            stack.callback(os.close, descriptor)
        arguments = {**asdict(limits), "algorithms": algorithms, "lowers": descriptors}
        return _run_child(blob, folder, arguments, descriptors)


def _run_child(blob: BinaryIO, folder: Path, limits: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
    command = [sys.executable, "-B", "-s", "-m", "worker.layers.unpack", str(folder), json.dumps(limits)]
    seconds = limits["seconds"]
    try:
        done = subprocess.run(
            command,
            stdin=blob,
            capture_output=True,
            timeout=seconds,
            cwd="/",
            env={"PYTHONPATH": str(_PACKAGES)},
            pass_fds=descriptors,
        )
    except subprocess.TimeoutExpired:
        raise ImageUnusable(f"unpacking a layer took more than {seconds} s") from None
    except OSError as error:
        raise FaasError(f"cannot start the unpacking: {error}") from None
    if done.returncode < 0:
        raise ImageUnusable(f"unpacking a layer was ended by signal {-done.returncode}: it costs too much")
    try:
        outcome: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise FaasError(f"unpacking a layer failed: {_last_line(done.stderr)}") from None
    if outcome.get("errno") in OUR_FAULTS:
        raise Unavailable(outcome["error"], hint="free space in the data folder")
    if "error" in outcome:
        raise ImageUnusable(outcome["error"])
    return outcome


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"


def _publish(temporary: Path, final: Path, seen: Path) -> None:
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
    seen.touch()
