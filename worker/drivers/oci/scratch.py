"""Disk space of instances: a pool of small file systems with a hard size, mounted ahead.

Each is an ext4 on a sparse file behind a loop device: it counts as no memory, it ends where it should, and it never
was anyone else's. The file is unlinked as soon as the device has it and the device frees itself on unmount, so that
nothing is left on disk however the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import struct
import subprocess
import tempfile
from collections import defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from faas.errors import FaasError, Unavailable
from worker.drivers.linux import mounts
from worker.network.programs import find

log = logging.getLogger("worker.oci")

READY = 2  # kept ready per size
PATIENCE_SECONDS = 0.1  # before one is made ahead: whoever took the last is starting an instance on the same cores
SIZES = 8  # sizes that are kept ready: the latest asked for
ATTEMPTS = 16  # another process may take the loop device that was free
MKFS_SECONDS = 30.0
OVERHEAD = 1 << 20  # bytes for superblock and groups, so that a function gets what it was promised
BLOCK_BYTES = 4096  # of the device too, so never less in the file system
INODE_RATIO = 16_384  # bytes per inode, ext4's usual
INODE_BYTES = 256

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LOOP_CLR_FD = 0x4C01
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16

PATTERN_BYTES = 4 << 20  # at most, of one size
Pattern = tuple[tuple[int, bytes], ...]  # of a new file system: where it has what, 128 KiB for 512 MiB


@dataclass(frozen=True, slots=True)
class Scratch:
    """A mounted file system for one instance. `tmp` is for everybody; `upper` and `work` are an overlay's."""

    folder: Path

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    @property
    def upper(self) -> Path:
        return self.folder / "upper"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def belong(self, root: int, user: tuple[int, int]) -> None:
        """To an instance whose root has the id `root` on the host, and whose user is `user` there. Raises OSError."""
        os.chown(self.folder, 0, root)
        self.folder.chmod(0o710)
        os.chown(self.tmp, root, root)
        os.chown(self.upper, *user)

    def hide(self) -> None:
        """Blocking. Unmount it here, if it is mounted; an instance that has it keeps it. Raises Unavailable."""
        with contextlib.suppress(OSError):
            mounts.unmount(self.folder)
            self.folder.rmdir()


class ScratchPool:
    """File systems below `points`, their files in `images`. Blocking work runs in `threads`."""

    def __init__(self, images: Path, points: Path, threads: ThreadPoolExecutor) -> None:
        self._images = images
        self._points = points
        self._threads = threads
        self._ready: defaultdict[int, deque[Scratch]] = defaultdict(deque)
        self._recent: deque[int] = deque(maxlen=SIZES)
        self._patterns: dict[int, Pattern] = {}  # of the sizes that are kept ready
        self._filling: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    def open(self) -> None:
        """Blocking. Remove the files that a crash left between their making and their unlinking."""
        self._points.mkdir(parents=True, exist_ok=True)
        self._points.chmod(0o711)  # an instance's root has to come to its own
        self._images.mkdir(mode=0o700, parents=True, exist_ok=True)
        free_loops(self._images)
        for left in self._images.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)

    async def take(self, size: int) -> Scratch:
        """A fresh file system with `size` bytes, at once where one is ready. Raises Unavailable."""
        return self.ready(size) or await self._made(size)

    def ready(self, size: int) -> Scratch | None:
        """One that was made ahead, and another one will be; None where there is none."""
        ready = self._ready[size]
        self._want(size)
        return ready.popleft() if ready else None

    async def discard(self, scratch: Scratch) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, scratch.hide)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._filling.values()):
            await task
        for ready in self._ready.values():
            while ready:
                await self.discard(ready.popleft())

    def _want(self, size: int) -> None:
        """Keep some of this size ready; a size that nobody asked for lately is given up."""
        if size in self._recent:
            self._recent.remove(size)
        self._recent.append(size)
        if self._closed or size in self._filling:
            return
        task = asyncio.create_task(self._fill(size))
        self._filling[size] = task
        task.add_done_callback(lambda _: self._filling.pop(size, None))

    async def _fill(self, size: int) -> None:
        try:
            if self._ready[size]:
                await asyncio.sleep(PATIENCE_SECONDS)
            while len(self._ready[size]) < READY and not self._closed:
                self._ready[size].append(await self._made(size))
            for old in [s for s in self._ready if s not in self._recent]:
                self._patterns.pop(old, None)
                for scratch in self._ready.pop(old):
                    await self.discard(scratch)
        except (FaasError, OSError) as error:
            log.warning("cannot make a file system for /tmp ahead: %s", error)

    async def _made(self, size: int) -> Scratch:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.make, size)

    def make(self, size: int) -> Scratch:
        """Blocking: 1 ms, where one of this size was made before. Raises Unavailable."""
        name = secrets.token_hex(6)
        image, folder = self._images / f"{name}.img", self._points / name
        try:
            if (pattern := self._patterns.get(size)) is not None:
                _copy_file_system(image, size, pattern)
            else:
                _make_file_system(image, size)
                if (pattern := _pattern(image)) is not None:
                    self._patterns[size] = pattern
            device, descriptor = attach(image)
            try:
                folder.mkdir(mode=0o711)
                # Inode tables need no zeroing: the file is sparse, and lazily zeroing them would fill it.
                flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOATIME
                mounts.mount(device, folder, "ext4", flags, "noinit_itable")
            finally:
                os.close(descriptor)  # from here on the mount holds the device, which frees itself after it
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise Unavailable(f"no disk space for an instance: {error}") from None
        finally:
            image.unlink(missing_ok=True)
        return Scratch(folder)


def _file_bytes(size: int) -> int:
    total = size + size // INODE_RATIO * INODE_BYTES + size // 256 + OVERHEAD
    return total // BLOCK_BYTES * BLOCK_BYTES


def _pattern(image: Path) -> Pattern | None:
    """All that was ever written to a sparse file; None where that is much, as where files have no holes."""
    pieces: list[tuple[int, bytes]] = []
    at, left = 0, PATTERN_BYTES
    with open(image, "rb") as file:
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return tuple(pieces)
                raise
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            left -= end - at
            if left < 0:
                return None
            if piece := os.pread(file.fileno(), end - at, at).rstrip(b"\0"):
                pieces.append((at, piece))
            at = end


def _copy_file_system(image: Path, size: int, pattern: Pattern) -> None:
    """As one that was made for this size has it: a burst of starts that each ran mkfs took 6 % more CPU."""
    with open(image, "xb") as file:
        file.truncate(_file_bytes(size))
        for at, piece in pattern:
            os.pwrite(file.fileno(), piece, at)


def _make_file_system(image: Path, size: int) -> None:
    with tempfile.TemporaryDirectory(dir=image.parent) as name:
        content = Scratch(Path(name))
        content.folder.chmod(0o755)
        for inner, mode in ((content.tmp, 0o1777), (content.upper, 0o755), (content.work, 0o755)):
            inner.mkdir()
            inner.chmod(mode)
        with open(image, "xb") as file:
            file.truncate(_file_bytes(size))
        _run_mkfs(image, content.folder)


def _run_mkfs(image: Path, content: Path) -> None:
    command = [
        find("mkfs.ext4") or "mkfs.ext4",
        "-q",
        "-F",
        "-b",
        str(BLOCK_BYTES),
        "-m",
        "0",
        "-i",
        str(INODE_RATIO),
        "-I",
        str(INODE_BYTES),
    ]
    command += [
        "-O",
        "^has_journal,^resize_inode",
        "-E",
        "lazy_itable_init=1,nodiscard",
        "-d",
        str(content),
        str(image),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MKFS_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"mkfs.ext4: {error}", hint="apt-get install e2fsprogs") from None
    if done.returncode:
        raise Unavailable(f"mkfs.ext4: {done.stderr.strip()[:300]}")


def attach(image: Path) -> tuple[str, int]:
    """A loop device on `image`: (its path, an open descriptor that keeps it until it is mounted). Raises OSError."""
    with open(image, "r+b") as file, open("/dev/loop-control", "rb") as control:
        for _ in range(ATTEMPTS):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = f"/dev/loop{number}"
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, LOOP_CONFIGURE, _loop_config(file.fileno(), image))
            except OSError:
                os.close(descriptor)
                continue
            return device, descriptor
    raise OSError("no free loop device")


def _loop_config(backing: int, image: Path) -> bytes:
    """struct loop_config (linux/loop.h): fd, block_size, loop_info64 (flags at 52, file name at 56), reserved.

    Direct I/O, where the file's own system has it: else the kernel keeps each page twice, and charges both to the
    instance, whose writes then wait for the disk as soon as it is near its memory limit (cgroup v2: 10 times slower).
    """
    info = bytearray(232)
    struct.pack_into("=I", info, 52, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
    name = os.fsencode(image)[-63:]
    info[56 : 56 + len(name)] = name
    return struct.pack("=II", backing, BLOCK_BYTES) + bytes(info) + bytes(64)


def free_loops(images: Path) -> None:
    """Blocking. Free every loop device whose file is, or was, in `images`."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(f"{images}/"):
                descriptor = os.open(f"/dev/{backing.parent.parent.name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(descriptor, LOOP_CLR_FD)
                finally:
                    os.close(descriptor)
