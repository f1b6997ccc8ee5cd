"""Mounts as descriptors, and their way into another mount namespace: fsopen(2), fsmount(2), open_tree(2),
mount_setattr(2), move_mount(2).

Called by number: the C library has no wrappers before glibc 2.36.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from worker.drivers.linux import mounts
from worker.network.namespace import setns, unshare

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT, SYS_MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
MOUNT_ATTR_IDMAP = 0x100000
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
FSCONFIG_BYTES = 255  # of one value
CLONE_NEWNS, CLONE_FS = 0x20000, 0x200

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def clone(folder: int) -> int:
    """A copy of the mount that the open `folder` is in, with the folder as its root, attached nowhere. Its flags (read
    only, nosuid, nodev) are those of that mount. A descriptor; closing it undoes a copy that was never attached."""
    flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | os.O_CLOEXEC
    return _checked(_libc.syscall(SYS_OPEN_TREE, folder, b"", flags), "open_tree")


def overlay(folders: Sequence[int], empty: Path) -> int:
    """A read-only overlay of open folders (the bottom one first) that is attached nowhere; a descriptor, as of `clone`.
    `empty` goes below them: such an overlay needs at least two.

    Nothing is mounted for it in our own namespace: to take that away again would wait for every processor.
    """
    lower = ":".join([*(f"/proc/self/fd/{folder}" for folder in reversed(folders)), str(empty)]).encode()
    if len(lower) > FSCONFIG_BYTES:
        raise OSError(errno.E2BIG, f"{len(folders)} layers are too many for an overlay")
    made = _checked(_libc.syscall(SYS_FSOPEN, b"overlay", FSOPEN_CLOEXEC), "fsopen")
    try:
        _checked(_libc.syscall(SYS_FSCONFIG, made, FSCONFIG_SET_STRING, b"lowerdir", lower, 0), "fsconfig")
        _checked(_libc.syscall(SYS_FSCONFIG, made, FSCONFIG_CMD_CREATE, None, None, 0), "fsconfig")
        flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        return _checked(_libc.syscall(SYS_FSMOUNT, made, FSMOUNT_CLOEXEC, flags), "fsmount")
    finally:
        os.close(made)


def clone_of(path: Path) -> int:
    """As `clone`, of a folder by its path."""
    folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return clone(folder)
    finally:
        os.close(folder)


def map_owners(tree: int, namespace: int) -> None:
    """Make a clone read-only, and its files' owners what the user namespace says."""
    _set(tree, _MountAttributes(MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, 0, 0, namespace))


def make_inert(tree: int) -> None:
    """Make a clone read-only, and nothing in it a program or a device."""
    _set(tree, _MountAttributes(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, 0, 0, 0))


def _set(tree: int, attributes: _MountAttributes) -> None:
    size = ctypes.sizeof(attributes)
    result = _libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, ctypes.byref(attributes), size)
    _checked(result, "mount_setattr")


def attach(tree: int, target: str) -> None:
    """Mount a clone on `target`, in the mount namespace of the calling thread."""
    result = _libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
    _checked(result, f"move_mount to {target}")


def attach_inside(process: int, clones: Sequence[tuple[int, str]]) -> None:
    """Mount clones, each on its path, in the mount namespace of the process that the pidfd `process` means. Linux 5.8.

    The calling thread goes there and comes back: 40 µs, where a thread of its own takes 300 and waits for two wake-ups.
    Nothing may await in between.
    """
    unshare(CLONE_FS)  # the root and working folder that all threads share cannot be taken along
    with contextlib.ExitStack() as stack:
        home, root, folder = (os.open(path, flags | os.O_CLOEXEC) for path, flags in _HERE)
        for descriptor in (home, root, folder):
            stack.callback(os.close, descriptor)
        setns(process, CLONE_NEWNS)
        try:
            for tree, target in clones:
                attach(tree, target)
        finally:
            _return(home, root, folder)


_HERE = (("/proc/thread-self/ns/mnt", os.O_RDONLY), ("/", os.O_PATH), (".", os.O_PATH))


def _return(home: int, root: int, folder: int) -> None:
    try:
        setns(home, CLONE_NEWNS)  # to its root, which need not be ours
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(folder)
    except OSError:
        os.abort()  # this thread would go on in a function's files


def folder_below(root: int, place: str) -> int:
    """`place` (`a/b`) below the open folder `root` as a descriptor. Links are not followed: whoever made what is below
    `root` must not choose what is opened. Raises OSError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    at = os.dup(root)
    for part in place.split("/"):
        try:
            step = os.open(part, flags, dir_fd=at)
        finally:
            os.close(at)
        at = step
    return at


def missing(work: Path) -> str:
    """Blocking. Why this kernel, or what confines this process, does not let mounts be handed on; empty where they can
    be. Tried in the folder `work`, with nothing left behind."""
    source, target = work / "from", work / "to"
    for folder in (source, target):
        folder.mkdir(parents=True, exist_ok=True)
    descriptors: list[int] = []
    try:
        descriptors += [os.open(source, os.O_PATH | os.O_CLOEXEC), os.pidfd_open(os.getpid())]
        descriptors.append(clone(descriptors[0]))
        attach_inside(descriptors[1], [(descriptors[2], str(target))])
        mounts.unmount(target)
    except OSError as error:
        return str(error)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        for folder in (source, target):
            folder.rmdir()
    return ""
