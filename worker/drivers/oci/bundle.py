"""A sandbox's `config.json` (runtime-spec, config.md): the whole of what it may do, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faas.secret import FOLDERS
from worker.drivers.base import SandboxSpec
from worker.drivers.linux.cgroups import PERIOD_MICROSECONDS, quota
from worker.drivers.oci.id_maps import Maps

OOM_SCORE = 500  # where the machine itself runs out of memory, a function goes before the server
SHM_BYTES = 1 << 20  # enough for a semaphore; data belongs in /tmp, which is not memory
SHM_FILES = 1024  # an empty one is memory too
_DEV = ["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]
_DEVPTS = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
# As Docker masks them: they tell about, or reach into, the host. (Its paths of processors' heat are in /sys, which no
# instance has.)
MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def _bind(source: Path, target: str, *options: str) -> dict[str, Any]:
    flags = ["bind", "nosuid", "nodev", *options]
    return {"destination": target, "type": "bind", "source": str(source), "options": flags}


def _user_namespace(maps: Maps | None) -> dict[str, Any]:
    if maps is None:
        return {}
    keys = ("containerID", "hostID", "size")
    users, groups = ([dict(zip(keys, row, strict=True)) for row in rows] for rows in maps)
    return {"uidMappings": users, "gidMappings": groups}


def configuration(
    spec: SandboxSpec,
    *,
    user: tuple[int, int],
    maps: Maps | None,
    root: Path,
    namespace: str,
    cgroup: str,
    memory: dict[str, Any],
    seccomp: dict[str, Any],
    tmp: Path | None,
    secrets: Path | None,
    cpu_shares: int,
) -> dict[str, Any]:
    """The configuration of a sandbox whose root is mounted at `root` and whose network is at the path `namespace`.

    No capability in any set, no new privileges, a numeric `user` (uid, gid), in a user namespace where there are
    `maps`. `memory` is the cgroups' part of the resources, `cpu_shares` its weight beside other instances, `secrets`
    the folder of its secrets.
    """
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": _DEV},
        {
            "destination": "/dev/shm",  # noqa: S108 - a path inside
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", f"size={SHM_BYTES}", f"nr_inodes={SHM_FILES}"],
        },
    ]
    if spec.terminal:
        mounts.append({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": _DEVPTS})
    if tmp is not None:
        mounts.append(_bind(tmp, "/tmp", "rw"))  # noqa: S108 - a path inside
    mounts += [_bind(secrets, folder, "ro", "noexec") for folder in FOLDERS if secrets is not None]
    uid, gid = user
    none: list[str] = []
    capabilities = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), none)
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "process": {
            "terminal": spec.terminal,
            "user": {"uid": uid, "gid": gid, "additionalGids": []},
            "args": list(spec.args),
            "env": [f"{name}={value}" for name, value in spec.environment().items()],
            "cwd": spec.workdir or "/",
            "capabilities": capabilities,
            "noNewPrivileges": True,
            "oomScoreAdj": OOM_SCORE,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": spec.open_files, "soft": spec.open_files},
                # Not 0: where core_pattern is a pipe the kernel ignores it, and refuses 1 (fs/coredump.c).
                {"type": "RLIMIT_CORE", "hard": 1, "soft": 1},
            ],
        },
        "root": {"path": str(root), "readonly": not spec.writable_root},
        "mounts": mounts,
        "annotations": dict(spec.labels),
        "linux": {
            "cgroupsPath": cgroup,
            **_user_namespace(maps),
            "namespaces": [
                *([{"type": "user"}] if maps else []),
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": namespace},
                {"type": "cgroup"},
            ],
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                **memory,
                "cpu": {"quota": quota(spec.cpus), "period": PERIOD_MICROSECONDS, "shares": cpu_shares},
                "pids": {"limit": spec.pids},
            },
            "seccomp": seccomp,
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "rootfsPropagation": "private",
        },
    }
