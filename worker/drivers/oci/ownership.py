"""Layers as a user of the sandbox owns them: files of root on disk appear as that user's, through id-mapped mounts.

An unmodified image that expects root (nginx makes folders in /var/cache) runs as a plain user with `writable_root`:
what root owns there is its own. Kernels that cannot map an overlay's lower layers (before 5.19) show them as they are.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

from worker.drivers.oci import trees

log = logging.getLogger("worker.drivers.oci")

IDS = 2**32 - 1  # every id that a file can have: what is not mapped could not be copied up
UNSHARE_SECONDS = 5.0


def swapped(user: int) -> str:
    """The lines of a uid_map in which 0 and `user` change places and every other id stays."""
    rows = [(0, user, 1), (user, 0, 1), (1, 1, user - 1), (user + 1, user + 1, IDS - user - 1)]
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in rows if count > 0)


def _mapping(uid: int, gid: int) -> int:
    """A user namespace with that mapping, as a descriptor. Nothing runs in it once it is open."""
    holder = subprocess.Popen(
        ["unshare", "--user", "sleep", "60"], stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"}
    )
    try:
        own, theirs = Path("/proc/self/ns/user").readlink(), Path(f"/proc/{holder.pid}/ns/user")
        deadline = time.monotonic() + UNSHARE_SECONDS
        while theirs.readlink() == own:
            if time.monotonic() > deadline or holder.poll() is not None:
                raise OSError("no user namespace could be made")
            time.sleep(0.001)
        Path(f"/proc/{holder.pid}/uid_map").write_text(swapped(uid))
        Path(f"/proc/{holder.pid}/gid_map").write_text(swapped(gid))
        return os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        holder.kill()
        holder.wait()


def _mount_mapped(source: Path, target: Path, namespace: int) -> None:
    folder = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        tree = trees.clone(folder)
    finally:
        os.close(folder)
    try:
        trees.map_owners(tree, namespace)
        target.mkdir(parents=True)
        trees.attach(tree, str(target))
    finally:
        os.close(tree)


class OwnedLayers:
    """Id-mapped views of layers below `folder`, one per layer and user, made at first use and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._supported = True

    def layers(self, layers: tuple[Path, ...], user: tuple[int, int]) -> tuple[Path, ...]:
        """Blocking. These layers with root's files as `user`'s; as they are where the kernel cannot map."""
        with self._lock:
            if not self._supported:
                return layers
            try:
                return tuple(self._layer(layer, user) for layer in layers)
            except OSError as error:
                self._supported = False
                log.warning("this kernel cannot map the owners of layers (%s): root's files stay root's", error)
                return layers

    def _layer(self, layer: Path, user: tuple[int, int]) -> Path:
        target = self._folder / f"{user[0]}-{user[1]}" / layer.name
        if not target.exists():
            namespace = _mapping(*user)
            try:
                _mount_mapped(layer.resolve(), target, namespace)
            except OSError:
                shutil.rmtree(target, ignore_errors=True)
                raise
            finally:
                os.close(namespace)
        return target
