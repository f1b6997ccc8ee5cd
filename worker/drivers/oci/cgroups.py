"""Limits and counters of instances, on cgroup v1 and v2.

The OCI runtime makes an instance's groups and writes its limits; we read the counters, change the CPU share, and
remove the groups. Under v1 each controller has a tree of its own, `/faas/<server id>/<id>` in each; under v2 there is
one, below our own group where systemd has delegated that to us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path
from typing import Any, Protocol

from worker.drivers.base import SandboxStats

ROOT = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 100_000  # µs, the kernel's default: a handler of a few ms is seldom throttled within one
CPU_QUOTA_LEAST = 1_000  # µs, the kernel's lower bound
CPU_SHARES, CPU_WEIGHT = 1024, 100  # the kernel's defaults, v1 and v2
V1_COUNTED = ("memory", "pids", "cpuacct", "cpu")
REMOVE_SECONDS = 2.0  # a group is busy until the kernel has buried its last process
SWEEP_SECONDS = 5.0
BURY_SECONDS = 1.0


class Cgroups(Protocol):
    """The groups of one server's instances."""

    def open(self) -> None:
        """Blocking. Make the parent usable. Raises OSError."""
        ...

    def path(self, sandbox_id: str) -> str:
        """`linux.cgroupsPath` of a runtime-spec config."""
        ...

    def memory(self, limit: int) -> dict[str, Any]:
        """The part of `linux.resources` that limits memory to `limit` bytes, without swap."""
        ...

    def stats(self, sandbox_id: str) -> SandboxStats: ...

    def oom_kills(self, sandbox_id: str) -> int: ...

    def set_cpus(self, sandbox_id: str, cpus: float) -> None: ...

    def set_limits(self, sandbox_id: str, memory_bytes: int, cpus: float) -> None:
        """Raise the memory limit, set the CPU limit, and give it its full share beside others. Raises OSError."""
        ...

    def kill(self, sandbox_id: str) -> None:
        """SIGKILL to every process in it."""
        ...

    def remove(self, sandbox_id: str) -> None:
        """Blocking. Remove its groups, which may be busy for a moment."""
        ...

    def ids(self) -> list[str]:
        """The sandboxes that have groups here."""
        ...

    def close(self) -> None:
        """Blocking. Kill and remove everything of this server."""
        ...


def is_v2(root: Path = ROOT) -> bool:
    """Whether this machine has the unified hierarchy alone."""
    return (root / "cgroup.controllers").exists()


def quota(cpus: float) -> int:
    """CPUs as µs per period."""
    return max(CPU_QUOTA_LEAST, round(cpus * PERIOD_MICROSECONDS))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _table(path: Path) -> dict[str, int]:
    """A file of `name value` lines; empty where it is gone."""
    try:
        rows = (line.split() for line in path.read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    except OSError:
        return {}


def _processes(folder: Path) -> list[int]:
    found: list[int] = []
    for listed in (folder / "cgroup.procs", *folder.glob("**/cgroup.procs")):
        with contextlib.suppress(OSError):
            # 0 is one of another PID namespace: to signal it would mean our own group of processes.
            found += [process for process in map(int, listed.read_text().split()) if process]
    return found


def _children(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _kill_all(*folders: Path) -> set[int]:
    """SIGKILL, until none is left: a process may fork while it is being read. The ids of those that were there."""
    deadline = time.monotonic() + SWEEP_SECONDS
    killed: set[int] = set()
    while (
        processes := [process for folder in folders for process in _processes(folder)]
    ) and time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        killed.update(processes)
        time.sleep(0.005)
    return killed


def _bury(processes: set[int]) -> None:
    """Take the exit status of those that are ours or were handed to us; what does not die is not waited for."""
    deadline = time.monotonic() + BURY_SECONDS
    for process in processes:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.002)


def _remove_tree(folder: Path, deadline: float) -> None:
    """rmdir from the bottom up; control files go with their folder."""
    below = [Path(f) for f, _, _ in os.walk(folder, topdown=False)] if folder.exists() else []
    for path in below:
        while True:
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.002)
                    continue
            break


class CgroupsV1:
    """`/faas/<server id>/<id>` in each controller's tree."""

    def __init__(self, server_id: str, root: Path = ROOT) -> None:
        self._root = root
        self._parent = f"faas/{server_id}"

    def _folder(self, controller: str, sandbox_id: str) -> Path:
        return self._root / controller / self._parent / sandbox_id

    def _trees(self) -> list[Path]:
        return [tree for tree in self._root.iterdir() if tree.is_dir() and not tree.is_symlink()]

    def open(self) -> None:
        missing = [name for name in ("memory", "pids", "cpu") if not (self._root / name).is_dir()]
        if missing:
            raise OSError(f"cgroup controllers are missing: {', '.join(missing)}")

    def path(self, sandbox_id: str) -> str:
        return f"/{self._parent}/{sandbox_id}"

    def memory(self, limit: int) -> dict[str, Any]:
        if (self._root / "memory" / "memory.memsw.limit_in_bytes").exists():
            return {"memory": {"limit": limit, "swap": limit}}
        return {"memory": {"limit": limit}}  # the kernel does not account for swap: runtimes would refuse

    def stats(self, sandbox_id: str) -> SandboxStats:
        memory = self._folder("memory", sandbox_id)
        table = _table(memory / "memory.stat")
        used = table.get("total_rss", 0) + table.get("total_shmem", 0) + _number(memory / "memory.kmem.usage_in_bytes")
        return SandboxStats(
            memory_bytes=used,
            oom_kills=self.oom_kills(sandbox_id),
            pids=_number(self._folder("pids", sandbox_id) / "pids.current"),
            cpu_seconds=_number(self._folder("cpuacct", sandbox_id) / "cpuacct.usage") / 1e9,
        )

    def oom_kills(self, sandbox_id: str) -> int:
        return _table(self._folder("memory", sandbox_id) / "memory.oom_control").get("oom_kill", 0)

    def set_cpus(self, sandbox_id: str, cpus: float) -> None:
        (self._folder("cpu", sandbox_id) / "cpu.cfs_quota_us").write_text(str(quota(cpus)))

    def set_limits(self, sandbox_id: str, memory_bytes: int, cpus: float) -> None:
        memory = self._folder("memory", sandbox_id)
        for name in ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"):  # the first is never below the second
            if (memory / name).exists():
                (memory / name).write_text(str(memory_bytes))
        (self._folder("cpu", sandbox_id) / "cpu.shares").write_text(str(CPU_SHARES))
        self.set_cpus(sandbox_id, cpus)

    def kill(self, sandbox_id: str) -> None:
        _bury(_kill_all(self._folder("pids", sandbox_id)))

    def remove(self, sandbox_id: str) -> None:
        deadline = time.monotonic() + REMOVE_SECONDS
        for tree in self._trees():
            _remove_tree(tree / self._parent / sandbox_id, deadline)

    def ids(self) -> list[str]:
        return _children(self._root / "memory" / self._parent)

    def close(self) -> None:
        _bury(_kill_all(*(tree / self._parent for tree in self._trees())))
        deadline = time.monotonic() + REMOVE_SECONDS
        for tree in self._trees():
            _remove_tree(tree / self._parent, deadline)
            with contextlib.suppress(OSError):
                (tree / "faas").rmdir()  # only where no other server has any


class CgroupsV2:
    """`<own group>/instances/<id>` where the group is delegated to us, else `/faas/<server id>/<id>`."""

    CONTROLLERS = ("cpu", "memory", "pids")

    def __init__(self, server_id: str, root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> None:
        self._root = root
        self._parent = Path("faas") / server_id
        self._own = own
        self._server_id = server_id

    def open(self) -> None:
        available = (self._root / "cgroup.controllers").read_text().split()
        missing = [name for name in self.CONTROLLERS if name not in available]
        if missing:
            raise OSError(f"cgroup controllers are missing: {', '.join(missing)}")
        delegated = self._delegated()
        if delegated is not None:
            self._move_into(delegated)
            self._parent = delegated.relative_to(self._root) / "instances"
        folder = self._root / self._parent
        folder.mkdir(parents=True, exist_ok=True)
        for step in reversed([folder, *folder.parents]):
            if step == self._root or self._root in step.parents:
                self._enable(step)

    def _delegated(self) -> Path | None:
        """Our own group, where systemd says that what is below is ours (Delegate=yes)."""
        rows = [line for line in self._own.read_text().splitlines() if line.startswith("0::/")]
        own = self._root / rows[0][4:] if rows else self._root
        if own.name == "server":  # we moved there ourselves, before a restart in place
            own = own.parent
        for name in ("trusted.delegate", "user.delegate"):
            with contextlib.suppress(OSError):
                if own != self._root and os.getxattr(own, name) == b"1":
                    return own
        return None

    def _move_into(self, own: Path) -> None:
        """A group that has processes cannot hand controllers down: ours go into `server`."""
        (own / "server").mkdir(exist_ok=True)
        for process in (own / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (own / "server" / "cgroup.procs").write_text(process)

    def _enable(self, folder: Path) -> None:
        control = folder / "cgroup.subtree_control"
        wanted = [name for name in self.CONTROLLERS if name not in control.read_text().split()]
        if not wanted:
            return
        try:
            control.write_text(" ".join(f"+{name}" for name in wanted))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            self._move_into(folder)  # the root of a container's cgroup namespace is no real root
            control.write_text(" ".join(f"+{name}" for name in wanted))

    def _folder(self, sandbox_id: str) -> Path:
        return self._root / self._parent / sandbox_id

    def path(self, sandbox_id: str) -> str:
        return f"/{self._parent}/{sandbox_id}"

    def memory(self, limit: int) -> dict[str, Any]:
        # The group dies as a whole: half an instance would hang instead of being replaced.
        return {"memory": {"limit": limit, "swap": limit}, "unified": {"memory.oom.group": "1"}}

    def stats(self, sandbox_id: str) -> SandboxStats:
        folder = self._folder(sandbox_id)
        memory = _table(folder / "memory.stat")
        return SandboxStats(
            memory_bytes=memory.get("anon", 0) + memory.get("shmem", 0) + memory.get("kernel", memory.get("slab", 0)),
            oom_kills=self.oom_kills(sandbox_id),
            pids=_number(folder / "pids.current"),
            cpu_seconds=_table(folder / "cpu.stat").get("usage_usec", 0) / 1e6,
        )

    def oom_kills(self, sandbox_id: str) -> int:
        return _table(self._folder(sandbox_id) / "memory.events").get("oom_kill", 0)

    def set_cpus(self, sandbox_id: str, cpus: float) -> None:
        (self._folder(sandbox_id) / "cpu.max").write_text(f"{quota(cpus)} {PERIOD_MICROSECONDS}")

    def set_limits(self, sandbox_id: str, memory_bytes: int, cpus: float) -> None:
        folder = self._folder(sandbox_id)
        (folder / "memory.max").write_text(str(memory_bytes))
        (folder / "cpu.weight").write_text(str(CPU_WEIGHT))
        self.set_cpus(sandbox_id, cpus)

    def kill(self, sandbox_id: str) -> None:
        folder = self._folder(sandbox_id)
        with contextlib.suppress(OSError):  # before Linux 5.14 there is no such file
            (folder / "cgroup.kill").write_text("1")
        _bury(_kill_all(folder))

    def remove(self, sandbox_id: str) -> None:
        _remove_tree(self._folder(sandbox_id), time.monotonic() + REMOVE_SECONDS)

    def ids(self) -> list[str]:
        return _children(self._root / self._parent)

    def close(self) -> None:
        folder = self._root / self._parent
        _bury(_kill_all(folder))
        _remove_tree(folder, time.monotonic() + REMOVE_SECONDS)
        with contextlib.suppress(OSError):
            (self._root / "faas").rmdir()


def for_machine(server_id: str, root: Path = ROOT) -> CgroupsV1 | CgroupsV2:
    return CgroupsV2(server_id, root) if is_v2(root) else CgroupsV1(server_id, root)
