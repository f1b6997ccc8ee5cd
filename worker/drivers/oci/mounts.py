"""Mounts by system call: no program is started for one. All raise OSError with the target in it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 0x1, 0x2, 0x4, 0x8, 0x400
MS_BIND, MS_PRIVATE = 0x1000, 1 << 18
MNT_DETACH = 0x2

AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_IDMAP = 0x1, 0x2, 0x4, 0x100000
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # one number on every architecture

OPTION_BYTES = 4095  # mount(2) takes one page of options
USERNS_SECONDS = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: Path, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, f"mount {kind or 'bind'} on {target}")


def unmount(target: Path) -> None:
    """umount2(2), lazily: what is still open goes with its last user. Nothing mounted there is no error."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) < 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        number = ctypes.get_errno()
        raise OSError(number, f"unmount {target}: {os.strerror(number)}")


def mounted_below(folder: Path) -> list[Path]:
    """Mount points at and below `folder`, the deepest and latest first."""
    rows = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(row.split()[4].encode().decode("unicode_escape")) for row in rows]
    return [point for point in reversed(points) if point == folder or folder in point.parents]


def overlay(target: Path, lowers: list[Path], upper: Path | None = None, work: Path | None = None) -> None:
    """An overlay of `lowers` (the top one first); read-only without an upper folder."""
    options = "lowerdir=" + ":".join(map(str, lowers))
    flags = MS_NOSUID | MS_NODEV
    if upper is None:
        flags |= MS_RDONLY
    else:
        options += f",upperdir={upper},workdir={work},volatile"  # gone with the instance: never flushed
    if len(os.fsencode(options)) > OPTION_BYTES:
        raise OSError(errno.E2BIG, f"{len(lowers)} layers do not fit the options of a mount")
    mount("overlay", target, "overlay", flags, options)


def id_mapping(uid: int, gid: int) -> int:
    """A user namespace, as a descriptor, that shows root's files as `uid`:`gid`'s, and theirs as root's.

    For `mapped_view`. A process cannot make one beside its threads, so a child does. Raises OSError.
    """
    child = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        if not child.stdout.readline():
            raise OSError(errno.EPERM, "no user namespaces here")
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            Path(f"/proc/{child.pid}/{name}").write_text(_swap_with_root(number))
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        child.kill()
        child.communicate(timeout=USERNS_SECONDS)


def _swap_with_root(number: int) -> str:
    """An id map (user_namespaces(7)): 0 ↔ `number`, every other id itself."""
    rows = [f"0 {number} 1", f"{number} 0 1", f"{number + 1} {number + 1} {2**32 - 2 - number}"]
    if number > 1:
        rows.insert(1, f"1 1 {number - 1}")
    return "\n".join(rows) + "\n"


def mapped_view(source: Path, target: Path, mapping: int) -> None:
    """Mount `source` on `target`, read-only, with its owners as `mapping` says (mount_setattr(2), kernel ≥ 5.12)."""
    tree = _check(
        _libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC),
        f"open_tree {source}",
    )
    try:
        attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_IDMAP
        value = struct.pack("=QQQQ", attributes, 0, 0, mapping)  # struct mount_attr: set, clear, propagation, userns
        done = _libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, value, ctypes.c_size_t(len(value)))
        _check(done, f"mount_setattr {source}")
        moved = _libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
        _check(moved, f"move_mount {target}")
    finally:
        os.close(tree)
