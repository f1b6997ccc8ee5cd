"""A containerd of a test's own, and its client ctr."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.commands import run

# What images need nothing of. Some of it would make folders, or look for devices, outside of ours.
UNUSED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.overlayfs",
    "io.containerd.snapshotter.v1.zfs",
)
# Isolated: what one namespace has pulled, another pulls again.
CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{unused}]
[grpc]
address = "{folder}/socket"
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
"""
START_SECONDS = 20.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Ctr:
    """ctr in a namespace, which has images and bytes of its own."""

    socket: Path
    namespace: str

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        return run("ctr", "--address", self.socket, "--namespace", self.namespace, *words, check=check)

    def push(self, image: str, *, user: str = "", check: bool = True) -> str:
        return self("images", "push", *self._access(user), image, check=check)

    def pull(self, image: str, *options: str, user: str = "", check: bool = True) -> str:
        return self("images", "pull", "--snapshotter=native", *options, *self._access(user), image, check=check)

    def digest(self, image: str) -> str:
        """Of an image that is here."""
        rows = [row.split() for row in self("images", "ls").splitlines()]
        return next(row[2] for row in rows if row and row[0] == image)

    def has(self, *digests: object) -> bool:
        """Whether these bytes are here."""
        here = self("content", "ls", "--quiet").split()
        return all(str(digest) in here for digest in digests)

    def _access(self, user: str) -> list[str]:
        return ["--plain-http", *([f"--user={user}"] if user else [])]


@contextmanager
def containerd(folder: Path) -> Iterator[Path]:
    """The socket of one that runs while the block does; `folder` holds all that it keeps."""
    folder.mkdir()
    config, socket, log = (folder / name for name in ("config.toml", "socket", "log"))
    config.write_text(CONFIG.format(folder=folder, unused=", ".join(f'"{name}"' for name in UNUSED)))
    with log.open("wb") as output:
        process = subprocess.Popen(["containerd", "--config", config], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Server:" not in run("ctr", "--address", socket, "version", check=False):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield socket
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
