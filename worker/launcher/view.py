"""What the server can reach once it is no longer root: its code, its interpreter, its data.

Where one of them lies in a folder that only root may enter (a home of mode 0700), the server gets a mount namespace of
its own, in which that folder has nothing but what is needed. Nobody else sees a difference, and no mode is changed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from faas.errors import Unavailable
from worker.drivers.linux import mounts
from worker.launcher.privileges import Account
from worker.network.namespace import unshare

CLONE_NEWNS = 0x20000
MS_REC, MS_SLAVE, MS_REMOUNT = 0x4000, 1 << 19, 0x20
PASSABLE = 0o711
_ROOM = "mode=0711,size=64k,nr_inodes=1k"


def open_to(account: Account, *own: Path, wished: Iterable[Path] = ()) -> None:
    """Blocking, as root, before the first thread. Let the account come to `own`, the code and the interpreter, and to
    those of `wished` that their own mode opens to it.

    Raises Unavailable where it cannot.
    """
    code = Path(__file__).resolve().parents[2]
    needed = _existing({*own, code, Path(sys.prefix), Path(sys.base_prefix)})
    others = {path for path in _existing([*map(Path, sys.path), *wished]) if path.is_absolute()}
    others = {path for path in others if _may_enter(path, account)}
    closed: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in sorted(needed | others):
        if not _may_enter(path, account):
            raise Unavailable(
                f"the user {account.name}, whom the server runs as, may not enter {path}",
                hint=f"chmod o+x {path}, or install elsewhere; user = root keeps root",
            )
        first = next((above for above in reversed(path.parents) if not _may_enter(above, account)), None)
        if first is not None:
            closed[first].append(path)
    if not closed:
        return
    try:
        _cover(closed)
    except OSError as error:
        raise Unavailable(
            f"the user {account.name}, whom the server runs as, may not enter {', '.join(map(str, closed))}: {error}",
            hint="install elsewhere; user = root keeps root",
        ) from None


def _existing(paths: Iterable[Path]) -> set[Path]:
    """As they are written, and as they are."""
    found = {path for path in paths if path.is_dir()}
    return found | {Path(os.path.realpath(path)) for path in found}


def _may_enter(folder: Path, account: Account) -> bool:
    found = folder.stat()
    if found.st_uid == account.uid:
        return bool(found.st_mode & stat.S_IXUSR)
    return bool(found.st_mode & (stat.S_IXGRP if found.st_gid == account.gid else stat.S_IXOTH))


def _cover(closed: dict[Path, list[Path]]) -> None:
    unshare(CLONE_NEWNS)
    mounts.mount("", Path("/"), "", MS_REC | MS_SLAVE)  # what is mounted later is seen; nothing of ours is
    with contextlib.ExitStack() as stack:
        opened: dict[Path, int] = {}  # in this namespace: mounts of another cannot be bound
        for path in (path for paths in closed.values() for path in paths):
            opened[path] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, opened[path])
        for folder, paths in closed.items():
            mounts.mount("faas", folder, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, _ROOM)
            for path in paths:
                if not any(other in path.parents for other in paths):  # else it is there with that one
                    _bind(opened[path], folder, path)
            flags = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_RDONLY
            mounts.mount("faas", folder, "tmpfs", MS_REMOUNT | flags, _ROOM)


def _bind(source: int, folder: Path, target: Path) -> None:
    for below in (*reversed([above for above in target.parents if folder in above.parents]), target):
        below.mkdir(exist_ok=True)
        below.chmod(PASSABLE)
    mounts.mount(f"/proc/self/fd/{source}", target, "", mounts.MS_BIND | MS_REC)
