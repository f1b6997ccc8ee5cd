"""`Bytecode`: the modules of a function's layers, compiled when it is deployed instead of at each of its starts.

An instance's root is read-only, so that Python would compile what it imports anew each time. The base's own
interpreter compiles each layer once, in a sandbox without network; the caches that it leaves become one more layer,
right above it. Nothing is compared with them at a start (PEP 552, unchecked): neither a layer nor its cache ever
changes. Where a higher layer has a source anew, and nothing compiled of it, caches of the old one are left out.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from faas.errors import FaasError
from faas.oci import labels
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig
from faas.oci.reference import BASES, Reference
from faas.spec import Network
from worker import sandbox_spec
from worker.drivers.base import Lend, PreparedImage, SandboxSpec
from worker.drivers.oci import standing
from worker.drivers.oci.sandbox import OciSandbox
from worker.layers.store import LAYERS, LayerStore, UnpackedImage

log = logging.getLogger("worker.drivers.oci")

LANGUAGE = "python"  # the repository of its bases
PLACES = ("var/task", "opt/python")  # where a function's layers have their modules
LEAST_BYTES = 32_768  # of source: less compiles in the time that a cache takes to be read
COMPILE_SECONDS = 50.0  # what is compiled then is kept; the rest compiles at each start, as before
BEGIN_SECONDS = 100.0  # of an image: no layer's compilation begins later; a launch waits for all this
MEMORY_BYTES = 512 << 20  # waited for until LEND_SECONDS have passed
SPACE_BYTES = 512 << 20
FILE_BYTES, ALL_BYTES, FILES = 32 << 20, 256 << 20, 100_000  # of caches that are taken over
CACHE = "__pycache__"
NAME = re.compile(r"([^/\x00]+)\.cpython-\d+\.pyc")

Run = Callable[[SandboxSpec, float], Awaitable[OciSandbox]]  # start it, wait for its end so many seconds, then kill it


class Bytecode:
    """`run` leaves the sandbox for `remove`. What cannot be compiled is left as it is: nothing fails for it."""

    def __init__(self, layers: LayerStore, run: Run, remove: Callable[[str], Awaitable[None]], lend: Lend) -> None:
        self._layers = layers
        self._run = run
        self._remove = remove
        self._lend = lend
        self._turn = asyncio.Lock()  # it is all CPU

    async def added(self, image: UnpackedImage) -> UnpackedImage:
        """The image with the caches of its own layers, each right above its layer; itself where nothing compiles."""
        reference = standing.base_of(image.config)
        if reference is None or reference.local != BASES + LANGUAGE:
            return image
        try:
            base = await self._layers.image(str(reference))
            # Caches are called after the base, and outlive the server that says what that is: by its digest, or not.
            if base.digest != reference.digest or image.layers[: len(base.layers)] != base.layers:
                return image
            if not base.config.entrypoint:
                return image
            own, caches = image.layers[len(base.layers) :], []
            room = LAYERS - len(image.layers)
            passing = own[-1] if own and labels.DEV in image.config.labels else None  # gone before compiling pays
            until = asyncio.get_running_loop().time() + BEGIN_SECONDS
            for layer in own:
                wanted = room > 0 and layer != passing
                caches.append(await self._cache(layer, base, reference, until) if wanted else None)
                room -= caches[-1] is not None
            if any(caches[:-1]):
                caches = await asyncio.to_thread(_current, own, caches)
        except (FaasError, OSError) as error:
            log.warning("the modules of %s compile at each start: %s", image.digest, error)
            return image
        together = (part for pair in zip(own, caches, strict=True) for part in pair if part is not None)
        return replace(image, layers=(*base.layers, *together))

    async def _cache(self, layer: Path, base: UnpackedImage, reference: Reference, until: float) -> Path | None:
        """The layer of caches of `layer`, made where it is not here, unless its turn has not come `until` (of the
        loop's clock). Raises FaasError, OSError."""
        chain = (await asyncio.to_thread(layer.readlink)).name
        name = _name(reference, chain)
        if (there := self._layers.found(name)) is not None:  # without a turn: others compile for long
            return there
        if not await asyncio.to_thread(_is_worth_it, layer):
            return None
        async with self._in_turn(until) as has_turn:
            if (there := self._layers.found(name)) is not None:
                return there
            if not has_turn:
                log.warning("there was no time to compile the modules of a layer: they compile at each start")
                return None
            below = PreparedImage(str(reference), base.config, replace(base, layers=(*base.layers, layer)))
            async with contextlib.AsyncExitStack() as memory:
                try:
                    await memory.enter_async_context(self._lend(MEMORY_BYTES))
                except FaasError as error:
                    log.warning("the modules of a layer are not compiled ahead, but at each start: %s", error)
                    return None
                return await self._made(name, below)

    async def _made(self, name: Digest, below: PreparedImage) -> Path:
        """Compile the topmost layer of `below`, and keep what comes of it as the layer `name`."""
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

    @contextlib.asynccontextmanager
    async def _in_turn(self, until: float) -> AsyncIterator[bool]:
        """Whether it is ours, waited for `until` then."""
        has_turn = False
        with contextlib.suppress(TimeoutError):
            if asyncio.get_running_loop().time() < until:
                async with asyncio.timeout_at(until):
                    has_turn = await self._turn.acquire()
        try:
            yield has_turn
        finally:
            if has_turn:
                self._turn.release()


def names(config: ImageConfig, layers: Iterable[Digest]) -> set[Digest]:
    """What the caches of such an image's layers are called, those included that were never made."""
    reference = standing.base_of(config)
    return {_name(reference, layer.hex) for layer in layers} if reference is not None else set()


def _name(base: Reference, layer: str) -> Digest:
    return Digest.of(f"bytecode {base.digest} {layer}".encode())


def _compiler(image: PreparedImage, sandbox_id: str) -> SandboxSpec:
    python = image.config.entrypoint[0]
    options = ("-qq", "--invalidation-mode", "unchecked-hash")
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
    left, files = ALL_BYTES, FILES  # what is beyond them compiles at each start
    with _opened(upper) as root:
        for place, name, directory in _files(root):
            if not place.endswith(f"/{CACHE}") or not NAME.fullmatch(name):
                continue
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = os.open(name, flags, dir_fd=directory)
            except OSError:  # a link, or what cannot be opened
                continue
            with open(descriptor, "rb") as source:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES:
                    continue
                if status.st_size > left or not files:
                    break
                left, files = left - status.st_size, files - 1
                target = folder / place / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    for made, folders, names in os.walk(folder):  # whatever our umask is
        for name in folders:
            (Path(made) / name).chmod(0o755)
        for name in names:
            (Path(made) / name).chmod(0o644)


def _current(own: Sequence[Path], caches: Sequence[Path | None]) -> list[Path | None]:
    """Blocking. The caches, by layer, but for those that would be read for a source which a layer above has anew."""
    current: list[Path | None] = []
    sources: set[str] = set()  # of the layers above, as the one that is looked at
    compiled: set[str] = set()
    for layer, cache in zip(reversed(own), reversed(caches), strict=True):
        if cache is not None:
            files = _compiled(cache)
            if any(source in sources and name not in compiled for name, source in files.items()):
                cache = None
            else:
                compiled |= files.keys()
        current.append(cache)
        compiled |= _compiled(layer).keys()
        with _opened(layer) as root:
            sources |= {f"{place}/{name}" for place, name, _ in _files(root) if name.endswith(".py")}
    return current[::-1]


def _compiled(layer: Path) -> dict[str, str]:
    """Blocking. The caches that a layer has, and what they are of."""
    with _opened(layer) as root:
        return {
            f"{place}/{name}": f"{place.removesuffix(CACHE)}{made[1]}.py"
            for place, name, _ in _files(root)
            if place.endswith(f"/{CACHE}") and (made := NAME.fullmatch(name))
        }


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
            top, _, inner = place.partition("/")
            for folder, folders, names, directory in os.fwalk(top, dir_fd=root, follow_symlinks=False):
                if folder == top:
                    folders[:] = {inner}.intersection(folders)
                    continue
                for name in names:
                    yield folder, name, directory
