"""`Bytecode`: the modules of a function's layers, compiled when it is deployed instead of at each of its starts.

An instance's root is read-only, so that Python would compile what it imports anew each time. The base's own
interpreter compiles each layer once, in a sandbox without network; the caches that it leaves become one more layer.
Nothing is compared with them at a start (PEP 552, unchecked): neither a layer nor its cache ever changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from faas.errors import FaasError, Unavailable
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig
from faas.oci.reference import BASES, Reference
from faas.spec import Network
from worker import sandbox_spec
from worker.drivers.base import PreparedImage, SandboxSpec
from worker.drivers.oci import standing
from worker.drivers.oci.sandbox import OciSandbox
from worker.layers.store import LayerStore, UnpackedImage

log = logging.getLogger("worker.drivers.oci")

LANGUAGE = "python"  # the repository of its bases
PLACES = ("var/task", "opt/python")  # where a function's layers have their modules
LEAST_BYTES = 32_768  # of source: less compiles in the time that a cache takes to be read
COMPILE_SECONDS = 50.0  # what is compiled then is kept; the rest compiles at each start, as before
MEMORY_BYTES = 512 << 20
SPACE_BYTES = 512 << 20
FILE_BYTES, ALL_BYTES, FILES = 32 << 20, 256 << 20, 100_000  # of caches that are taken over
CACHE = "__pycache__"
NAME = re.compile(r"[^/\x00]+\.cpython-\d+\.pyc")

Run = Callable[[SandboxSpec, float], Awaitable[OciSandbox]]  # start it, wait for its end so many seconds, then kill it


class Bytecode:
    """`run` leaves the sandbox for `remove`. What cannot be compiled is left as it is: nothing fails for it."""

    def __init__(self, layers: LayerStore, run: Run, remove: Callable[[str], Awaitable[None]]) -> None:
        self._layers = layers
        self._run = run
        self._remove = remove
        self._turn = asyncio.Lock()  # it is all CPU

    async def added(self, image: UnpackedImage) -> UnpackedImage:
        """The image with the caches of its own layers on top; itself where there is nothing to compile."""
        reference = standing.base_of(image.config)
        if reference is None or reference.local != BASES + LANGUAGE:
            return image
        try:
            base = await self._layers.image(str(reference))
            if image.layers[: len(base.layers)] != base.layers or not base.config.entrypoint:
                return image
            own = image.layers[len(base.layers) :]
            found = [await self._cache(layer, base, reference) for layer in own]
        except (FaasError, OSError) as error:
            log.warning("the modules of %s compile at each start: %s", image.digest, error)
            return image
        return replace(image, layers=(*image.layers, *filter(None, found)))

    async def _cache(self, layer: Path, base: UnpackedImage, reference: Reference) -> Path | None:
        """The layer of caches of `layer`, made where it is not here. Raises FaasError, OSError."""
        chain = (await asyncio.to_thread(layer.readlink)).name
        name = _name(reference, chain)
        async with self._turn:
            if (there := self._layers.found(name)) is not None:
                return there
            if not await asyncio.to_thread(_is_worth_it, layer):
                return None
            below = PreparedImage(str(reference), base.config, replace(base, layers=(*base.layers, layer)))
            sandbox_id = f"compile{secrets.token_hex(8)}"
            try:
                sandbox = await self._run(_compiler(below, sandbox_id), COMPILE_SECONDS)
                if not sandbox.exited.done() or sandbox.exited.result().signal:
                    log.warning("not all modules of a layer were compiled", extra={"instance": sandbox_id})
                scratch = sandbox.scratch
                assert scratch is not None
                return await self._layers.add(name, lambda folder: _gather(scratch.upper, folder))
            finally:
                await self._remove(sandbox_id)


def names(config: ImageConfig, layers: Iterable[Digest]) -> set[Digest]:
    """What the caches of such an image's layers are called, those included that were never made."""
    reference = standing.base_of(config)
    return {_name(reference, layer.hex) for layer in layers} if reference is not None else set()


def _name(base: Reference, layer: str) -> Digest:
    return Digest.of(f"bytecode {base.digest} {layer}".encode())


def _compiler(image: PreparedImage, sandbox_id: str) -> SandboxSpec:
    python = image.config.entrypoint[0]
    options = ("-q", "--invalidation-mode", "unchecked-hash")
    variables = (variable.partition("=")[::2] for variable in image.config.env)
    return SandboxSpec(
        id=sandbox_id,
        image=image,
        args=(python, "-I", "-S", "-m", "compileall", *options, *(f"/{place}" for place in PLACES)),
        env={**sandbox_spec.DEFAULTS, **{name: value for name, value in variables if name}},
        workdir="/",
        memory_bytes=MEMORY_BYTES,
        cpus=sandbox_spec.INIT_CPUS,
        tmp_bytes=SPACE_BYTES,
        writable_root=True,
        network=Network.NONE,
    )


def _is_worth_it(layer: Path) -> bool:
    """Blocking. Whether the layer has so much source."""
    total = 0
    with _opened(layer) as root:
        for _, name, directory in _files(root):
            if name.endswith(".py"):
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
                if total >= LEAST_BYTES:
                    return True
    return False


def _gather(upper: Path, folder: Path) -> None:
    """Blocking. Copy the caches below `upper` into `folder`, as root's files, and nothing else of what is there.

    Whoever wrote them has ended, but what he wrote is his: no link is followed, and only a cache's name counts.
    """
    left, files = ALL_BYTES, FILES
    with _opened(upper) as root:
        for place, name, directory in _files(root):
            if not place.endswith(f"/{CACHE}") or not NAME.fullmatch(name):
                continue
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            with open(descriptor, "rb") as source:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES:
                    continue
                left, files = left - status.st_size, files - 1
                if left < 0 or files < 0:
                    raise Unavailable("the compiled modules are too many, or too large")
                target = folder / place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    for made, folders, names in os.walk(folder):  # whatever our umask is
        for name in folders:
            (Path(made) / name).chmod(0o755)
        for name in names:
            (Path(made) / name).chmod(0o644)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _files(root: int) -> Iterator[tuple[str, str, int]]:
    """(folder below `root`, name, descriptor of that folder) of each file in PLACES. No link is followed."""
    for place in PLACES:
        with contextlib.suppress(FileNotFoundError):
            for folder, _, names, directory in os.fwalk(place.partition("/")[0], dir_fd=root, follow_symlinks=False):
                if folder == place or folder.startswith(f"{place}/"):
                    for name in names:
                        yield folder, name, directory
