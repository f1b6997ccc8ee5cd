"""mount(2) and umount(2), and the root file system of a sandbox: its image's layers as one overlay."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from faas.errors import Unavailable

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_DETACH = 2
OPTIONS_BYTES = 4095  # one page, less its terminator: mount(2)

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    """mount(2). Raises Unavailable with the options, since the kernel's own word is short."""
    if len(options) > OPTIONS_BYTES:
        raise Unavailable(f"the image has too many layers for one overlay ({len(options)} bytes of options)")
    arguments = (source.encode(), str(target).encode(), kind.encode(), flags, options.encode() or None)
    if _libc.mount(*arguments):
        number = ctypes.get_errno()
        raise Unavailable(f"cannot mount {kind} at {target}: {os.strerror(number)} ({options[:300]})")


def unmount(target: Path) -> None:
    """Lazily, so that a last open file does not keep the name. Nothing mounted there is no error."""
    if _libc.umount2(str(target).encode(), MNT_DETACH):
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise Unavailable(f"cannot unmount {target}: {os.strerror(number)}")


def mount_root(layers: Sequence[Path], target: Path, scratch: Path | None, empty: Path) -> None:
    """The image's root at `target`: read-only, or with `scratch` writable within that folder's file system.

    `layers` run from the bottom to the top, overlayfs wants the top first. Without an upper folder it wants at least
    two lower ones: `empty` is the second.
    """
    lower = ":".join(str(layer) for layer in reversed(layers))
    if scratch is None:
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        mount("overlay", target, "overlay", flags, f"lowerdir={lower}:{empty}")
    else:
        upper, work = scratch / "upper", scratch / "work"
        mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, f"lowerdir={lower},upperdir={upper},workdir={work}")


def mounted_below(folder: Path) -> list[Path]:
    """Mount points at or below `folder`, deepest first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point == folder or folder in point.parents:
            found.append(point)
    return sorted(found, key=lambda p: len(p.parts), reverse=True)
