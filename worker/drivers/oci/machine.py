"""What the oci driver needs of a machine, makes on it, and takes away again. Everything blocks."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from pathlib import Path

from faas.errors import FaasError
from worker import shared
from worker.drivers.linux import mounts
from worker.drivers.linux.cgroups import Cgroups
from worker.drivers.oci import runtime
from worker.network import programs

log = logging.getLogger("worker.drivers.oci")

RUN = Path("/run/faas")
TOOLS = ("nft", "ip", "mkfs.ext4")


def missing(wanted_runtime: str = "") -> list[str]:
    """Why the driver cannot run here, in words; empty where it can."""
    reasons = []
    if os.geteuid() != 0:
        reasons.append("not root")
    if runtime.find(wanted_runtime) is None:
        reasons.append(f"{wanted_runtime or 'runc'} is not installed")
    if not mounts.known("overlay"):
        reasons.append("the kernel has no overlayfs (modprobe overlay)")
    if not mounts.loop_devices():
        reasons.append("the kernel has no loop devices (modprobe loop)")
    reasons += [f"{tool} is not installed" for tool in TOOLS if not programs.find(tool)]
    return reasons


def prepare(run: Path, cgroups: Cgroups) -> None:
    """End and remove what a crashed server of this data folder left, then make `run` anew. Raises OSError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cgroups.open()
    leave_nothing(run, cgroups)
    cgroups.open()
    shared.make(run, 0o711)
    # A file system of its own that passes no mount on: other mount namespaces never hold an instance's root.
    mounts.mount("faas", run, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0711")
    mounts.mount("", run, "", mounts.MS_PRIVATE)
    # An instance's runtime begins as root inside, who is nobody here, and has to come to its own folder.
    RUN.chmod(0o711)
    for name in ("bundles", "empty"):
        (run / name).mkdir()
        (run / name).chmod(0o711)  # whatever umask says
    for name in ("ids", "runtime"):  # a pipe among the runtime's records is everybody's to write to
        (run / name).mkdir(mode=0o700)


def leave_nothing(run: Path, cgroups: Cgroups) -> None:
    """Processes, mounts, folders and groups of this server."""
    cgroups.close()
    for point in mounts.mounted_below(run):
        try:
            mounts.unmount(point)
        except FaasError as error:
            log.error("%s", error)
    for folder in (run, RUN):
        with contextlib.suppress(OSError):  # RUN may hold another server's
            folder.rmdir()
