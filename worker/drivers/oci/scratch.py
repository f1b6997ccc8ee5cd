"""Disk space of sandboxes with a hard size: sparse ext4 images, mounted through loop devices, made ahead.

tmpfs would count as the function's memory, and project quotas are not to be had on every kernel. An image is made
anew for each sandbox (about 10 ms, off the path) and never cleaned for the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import subprocess
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from faas.errors import FaasError, Unavailable
from worker.drivers.oci.mounts import unmount

log = logging.getLogger("worker.drivers.oci")

READY = 2  # images of each size kept ready
SIZES = 8  # sizes that are kept ready; the least recently used one is let go
TIMEOUT = 30.0  # seconds
T = TypeVar("T")
MINIMUM_BYTES = 8 << 20  # smaller file systems have no room for their own tables


@dataclass(frozen=True, slots=True)
class Scratch:
    """A mounted file system: `tmp` (mode 1777) for /tmp, `upper` and `work` for a writable root."""

    folder: Path
    image: Path

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"


class ScratchPool:
    """Gives scratch file systems by size. Blocking work runs in `threads`."""

    def __init__(self, images: Path, mounts: Path, threads: ThreadPoolExecutor) -> None:
        self._images = images
        self._mounts = mounts
        self._threads = threads
        self._ready: dict[int, deque[Scratch]] = {}
        self._filling: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    def open(self) -> None:
        """Blocking. Take away what a crashed server left."""
        for folder in (self._images, self._mounts):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._mounts.iterdir():
            unmount(left)
            left.rmdir()
        for left in self._images.iterdir():
            left.unlink()

    async def take(self, size: int) -> Scratch:
        """A file system of `size` bytes, at once where one is ready. Raises Unavailable."""
        ready = self._ready.pop(size, None) or deque()
        self._ready[size] = ready  # last: the most recently used
        try:
            return ready.popleft() if ready else await self._run(lambda: self._make(size))
        finally:
            self._refill(size)

    async def discard(self, scratch: Scratch) -> None:
        await self._run(lambda: self._remove(scratch))

    async def close(self) -> None:
        self._closed = True
        for task in list(self._filling.values()):
            with contextlib.suppress(FaasError):
                await task
        for ready in self._ready.values():
            for scratch in ready:
                await self.discard(scratch)
        self._ready.clear()

    def _refill(self, size: int) -> None:
        if size in self._filling or self._closed:
            return

        async def fill() -> None:
            ready = self._ready.get(size)
            try:
                while ready is not None and len(ready) < READY and not self._closed:
                    ready.append(await self._run(lambda: self._make(size)))
                while len(self._ready) > SIZES:
                    oldest = next(iter(self._ready))
                    for scratch in self._ready.pop(oldest):
                        await self.discard(scratch)
            except FaasError as error:
                log.warning("cannot make scratch space ahead: %s", error)

        task = asyncio.create_task(fill())
        self._filling[size] = task
        task.add_done_callback(lambda _: self._filling.pop(size, None))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _make(self, size: int) -> Scratch:
        name = secrets.token_hex(8)
        scratch = Scratch(self._mounts / name, self._images / name)
        try:
            with open(scratch.image, "wb") as image:
                os.truncate(image.fileno(), max(size, MINIMUM_BYTES))
            # No journal: it is thrown away. No reserve: the size is what the user asked for.
            _run(["mkfs.ext4", "-q", "-F", "-m0", "-O^has_journal", "-Elazy_itable_init=1", str(scratch.image)])
            scratch.folder.mkdir(mode=0o700)
            _run(["mount", "-o", "loop,nosuid,nodev,noatime", str(scratch.image), str(scratch.folder)])
            for folder, mode in (("tmp", 0o1777), ("upper", 0o755), ("work", 0o755)):
                (scratch.folder / folder).mkdir()
                (scratch.folder / folder).chmod(mode)
        except BaseException:
            self._remove(scratch)
            raise
        return scratch

    def _remove(self, scratch: Scratch) -> None:
        unmount(scratch.folder)
        with contextlib.suppress(OSError):
            scratch.folder.rmdir()
        scratch.image.unlink(missing_ok=True)  # the loop device lets go of it with the last mount


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}", hint="apt-get install e2fsprogs") from None
    if done.returncode:
        raise Unavailable(f"{command[0]}: {done.stderr.strip()[:300]}")
