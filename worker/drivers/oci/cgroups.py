"""Control groups of sandboxes, on version 1 (one hierarchy per controller) and version 2 (one for all).

The runtime makes a sandbox's groups and writes its limits; this module says where they are, measures, changes the CPU
share, kills and removes.  v1: `/<controller>/faas/<server>/<id>`.  v2: `<own group>/instances/<id>`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from worker.drivers.base import SandboxStats

ROOT = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 20_000  # short, so that a function with a small share is not stopped for long at a time
SHARE_MINIMUM = 1_000  # microseconds: the kernel's least quota
V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "freezer", "devices", "blkio", "cpuset")


def is_v2(root: Path = ROOT) -> bool:
    """Whether the host has the unified hierarchy alone; a hybrid host's limits live in version 1."""
    return (root / "cgroup.controllers").exists()


def quota(cpus: float) -> int:
    """Microseconds of CPU per period."""
    return max(SHARE_MINIMUM, round(cpus * PERIOD_MICROSECONDS))


class Cgroups:
    """The groups of one server's sandboxes."""

    def __init__(self, server_id: str, root: Path = ROOT) -> None:
        self.v2 = is_v2(root)
        self._root = root
        self._parent = f"/faas/{server_id}" if not self.v2 else f"{_own_group(root)}/instances/{server_id}"

    def path(self, sandbox_id: str) -> str:
        """The runtime-spec's `linux.cgroupsPath`."""
        return f"{self._parent}/{sandbox_id}"

    def folder(self, sandbox_id: str, controller: str) -> Path:
        top = self._root if self.v2 else self._root / controller
        return top / self.path(sandbox_id).lstrip("/")

    def open(self) -> None:
        """Blocking. v2: the server moves aside, since a group with processes cannot have limited children."""
        if not self.v2:
            return
        own = self._root / _own_group(self._root).lstrip("/")
        server = own / "server"
        server.mkdir(exist_ok=True)
        (server / "cgroup.procs").write_text(str(os.getpid()))
        parent = self._root / self._parent.lstrip("/")
        parent.mkdir(parents=True, exist_ok=True)
        for group in (own, own / "instances", parent):
            (group / "cgroup.subtree_control").write_text("+memory +cpu +pids")

    def stats(self, sandbox_id: str) -> SandboxStats:
        """A few small files; zeros where the sandbox is gone."""
        memory = self.folder(sandbox_id, "memory")
        stat = _table(memory / "memory.stat")
        if self.v2:
            used = stat.get("anon", 0) + stat.get("shmem", 0) + stat.get("kernel", stat.get("slab", 0))
            cpu = _table(memory / "cpu.stat").get("usage_usec", 0) / 1e6
            return SandboxStats(used, self.oom_kills(sandbox_id), _number(memory / "pids.current"), cpu)
        # v1's rss is anonymous memory, and its shmem counts tmpfs; the kernel's own memory has a file of its own.
        used = stat.get("total_rss", 0) + stat.get("total_shmem", 0) + _number(memory / "memory.kmem.usage_in_bytes")
        cpu = _number(self.folder(sandbox_id, "cpuacct") / "cpuacct.usage") / 1e9
        pids = _number(self.folder(sandbox_id, "pids") / "pids.current")
        return SandboxStats(used, self.oom_kills(sandbox_id), pids, cpu)

    def oom_kills(self, sandbox_id: str) -> int:
        """How often the kernel killed in it for want of memory: the proof, which no exit code is."""
        name = "memory.events" if self.v2 else "memory.oom_control"
        return _table(self.folder(sandbox_id, "memory") / name).get("oom_kill", 0)

    def set_cpus(self, sandbox_id: str, cpus: float) -> None:
        """Blocking, short. No error where the sandbox is gone."""
        with contextlib.suppress(OSError):
            if self.v2:
                (self.folder(sandbox_id, "") / "cpu.max").write_text(f"{quota(cpus)} {PERIOD_MICROSECONDS}")
            else:
                (self.folder(sandbox_id, "cpu") / "cpu.cfs_quota_us").write_text(str(quota(cpus)))

    def kill(self, sandbox_id: str) -> None:
        """SIGKILL for every process in it. Repeats while a bomb forks."""
        if self.v2:
            with contextlib.suppress(OSError):
                (self.folder(sandbox_id, "") / "cgroup.kill").write_text("1")
            return
        for _ in range(100):
            pids = self.processes(sandbox_id)
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def processes(self, sandbox_id: str) -> list[int]:
        try:
            return [int(pid) for pid in (self.folder(sandbox_id, "pids") / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def remove(self, sandbox_id: str) -> None:
        """Blocking: waits, bounded, for the kernel to let the last process go."""
        for folder in self._folders(sandbox_id):
            for _ in range(200):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.005)
                else:
                    break

    def ids(self) -> list[str]:
        """Sandboxes that have a group."""
        found: set[str] = set()
        for folder in self._folders(""):
            with contextlib.suppress(OSError):
                found.update(entry.name for entry in folder.iterdir() if entry.is_dir())
        return sorted(found)

    def close(self) -> None:
        """Blocking. Remove the server's own empty groups."""
        for folder in self._folders(""):
            for group in (folder, folder.parent):
                with contextlib.suppress(OSError):
                    group.rmdir()

    def _folders(self, sandbox_id: str) -> list[Path]:
        if self.v2:
            return [self.folder(sandbox_id, "")]
        present = [p.name for p in self._root.iterdir() if p.is_dir() and not p.is_symlink()]
        return [self.folder(sandbox_id, controller) for controller in present]


def _own_group(root: Path) -> str:
    """This process's group on version 2; the part before our own `server` group."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            group = line[3:]
            return group.removesuffix("/server") or "/faas"
    return "/faas"


def _table(path: Path) -> dict[str, int]:
    """`name number` lines."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
