"""Mounts by system call: no program is started for one. All raise OSError with the target in it."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from faas.errors import Unavailable
from worker.network.programs import attempt

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 0x1, 0x2, 0x4, 0x8, 0x400
MS_BIND, MS_PRIVATE = 0x1000, 1 << 18
MNT_DETACH = 0x2

LOOP_CONTROL = Path("/dev/loop-control")
OPTION_BYTES = 4095  # mount(2) takes one page of options

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


def known(kind: str) -> bool:
    """Blocking. Whether the kernel has this kind of file system.

    A module that no mount has asked for yet is in no list: it is loaded. Who may not load it hears whether root could.
    """
    return _listed(kind) or (_load(kind) and (os.geteuid() != 0 or _listed(kind)))


def loop_devices() -> bool:
    """Blocking. Whether the kernel has loop devices; their module is loaded where nobody has asked for it yet."""
    return LOOP_CONTROL.exists() or (_load("loop") and (os.geteuid() != 0 or LOOP_CONTROL.exists()))


def _load(module: str) -> bool:
    """Load it; without root, whether it is there to be loaded."""
    dry = [] if os.geteuid() == 0 else ["--dry-run"]
    return attempt(["modprobe", "--quiet", *dry, module]) is not None


def _listed(kind: str) -> bool:
    return any(row.split()[-1] == kind for row in Path("/proc/filesystems").read_text().splitlines())


def unmount(target: Path) -> None:
    """umount2(2), lazily: what is still open goes with its last user. Nothing mounted there is no error."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) < 0 and ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        number = ctypes.get_errno()
        raise Unavailable(f"cannot unmount {target}: {os.strerror(number)}")


def mounted_below(folder: Path) -> list[Path]:
    """Mount points at and below `folder`, the deepest and latest first."""
    rows = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    points = [Path(row.split()[4].encode().decode("unicode_escape")) for row in rows]
    return [point for point in reversed(points) if point == folder or folder in point.parents]


def mount_root(layers: tuple[Path, ...], target: Path, upper: Path | None, empty: Path) -> None:
    """An overlay of `layers` (the bottom one first) on `target`; read-only without `upper`, a scratch file system.

    `empty` goes below them: a read-only overlay needs at least two.
    """
    options = "lowerdir=" + ":".join(map(str, (*reversed(layers), empty)))
    flags = MS_NOSUID | MS_NODEV
    if upper is None:
        flags |= MS_RDONLY
    else:
        options += f",upperdir={upper}/upper,workdir={upper}/work,volatile"  # gone with the instance: never flushed
    if len(os.fsencode(options)) > OPTION_BYTES:
        raise Unavailable(f"{len(layers)} layers do not fit the options of a mount", hint="squash the image's layers")
    try:
        mount("overlay", target, "overlay", flags, options)
    except OSError as error:
        raise Unavailable(f"cannot mount an instance's root: {error}") from None
