"""Limits and counters of instances, on cgroup v1 and v2.

The OCI runtime makes an instance's groups and writes its limits; we read the counters, change the CPU share, freeze
and thaw, and remove the groups. Under v1 each controller has a tree of its own, `/faas/<server id>/<id>` in each; under
v2 there is one, below our own group where systemd has delegated that to us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any, Protocol

from worker import shared
from worker.drivers.base import SandboxStats
from worker.drivers.linux import groups
from worker.drivers.linux.counters import Counters, parse_v1, parse_v2

ROOT = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 100_000  # µs, the kernel's default: a handler of a few ms is seldom throttled within one
CPU_QUOTA_LEAST = 1_000  # µs, the kernel's lower bound
CPU_SHARES, CPU_WEIGHT = 1024, 100  # the kernel's defaults, v1 and v2
CPU_SHARES_LEAST = 2
V1_COUNTERS = (  # the whole memory, then in the order of `parse_v1`
    ("memory", "memory.usage_in_bytes"),
    ("memory", "memory.stat"),
    ("memory", "memory.kmem.usage_in_bytes"),
    ("memory", "memory.oom_control"),
    ("pids", "pids.current"),
    ("cpuacct", "cpuacct.usage"),
)
# The whole memory, then in the order of `parse_v2`.
V2_COUNTERS = ("memory.current", "memory.stat", "memory.events", "pids.current", "cpu.stat")


class Cgroups(Protocol):
    """The groups of one server's instances."""

    def open(self) -> None:
        """Blocking. Make the parent usable. Raises OSError."""
        ...

    def path(self, sandbox_id: str) -> str:
        """`linux.cgroupsPath` of a runtime-spec config."""
        ...

    def shares(self, shares: int) -> int:
        """What `linux.resources.cpu.shares` must say for a weight of `shares`, in v1's scale, in which 1024 is full."""
        ...

    def memory(self, limit: int) -> dict[str, Any]:
        """The part of `linux.resources` that limits memory to `limit` bytes, without swap."""
        ...

    def counters(self, sandbox_id: str) -> Counters:
        """To be read often, and closed."""
        ...

    def stats(self, sandbox_id: str) -> SandboxStats: ...

    def oom_kills(self, sandbox_id: str) -> int: ...

    def set_cpus(self, sandbox_id: str, cpus: float) -> None:
        """Set the CPU limit, and give it its full share beside others. Raises OSError."""
        ...

    def set_limits(self, sandbox_id: str, memory_bytes: int, cpus: float) -> None:
        """Raise the memory limit, and what `set_cpus` does. Raises OSError."""
        ...

    def freeze(self, sandbox_id: str) -> bool:
        """Stop its processes where they stand; whether all of them do by now: it is said again until then. One that
        is in the kernel's hands gets there first. Raises OSError, FileNotFoundError where it is gone."""
        ...

    def thaw(self, sandbox_id: str) -> None:
        """Raises OSError, FileNotFoundError where it is gone."""
        ...

    def end_frozen(self, sandbox_id: str) -> None:
        """Blocking. SIGKILL to every process in it, none of which runs again before."""
        ...

    def kill(self, sandbox_id: str) -> None:
        """Blocking. SIGKILL to every process in it, frozen or not, and bury them."""
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
    return os.access(f"{root}/cgroup.controllers", os.F_OK)


def starting_shares(starting: int, cores: int) -> int:
    """The CPU weight of one that starts beside `starting` others, itself included: together they weigh as much as one
    ready instance for each core, so that a burst of starts leaves the others theirs. Pure."""
    return max(CPU_SHARES_LEAST, CPU_SHARES * cores // max(cores, starting))


def quota(cpus: float) -> int:
    """CPUs as µs per period."""
    return max(CPU_QUOTA_LEAST, round(cpus * PERIOD_MICROSECONDS))


class CgroupsV1:
    """`/faas/<server id>/<id>` in each controller's tree."""

    def __init__(self, server_id: str, root: Path = ROOT) -> None:
        self._root = root
        self._parent = f"faas/{server_id}"

    def _folder(self, controller: str, sandbox_id: str) -> str:
        return f"{self._root}/{controller}/{self._parent}/{sandbox_id}"

    def _trees(self) -> list[Path]:
        return [tree for tree in self._root.iterdir() if tree.is_dir() and not tree.is_symlink()]

    def open(self) -> None:
        missing = [name for name in ("memory", "pids", "cpu") if not (self._root / name).is_dir()]
        if missing:
            raise OSError(f"cgroup controllers are missing: {', '.join(missing)}")
        for tree in self._trees():
            shared.make(tree / self._parent)

    def path(self, sandbox_id: str) -> str:
        return f"/{self._parent}/{sandbox_id}"

    def shares(self, shares: int) -> int:
        return shares

    def memory(self, limit: int) -> dict[str, Any]:
        if (self._root / "memory" / "memory.memsw.limit_in_bytes").exists():
            return {"memory": {"limit": limit, "swap": limit}}
        return {"memory": {"limit": limit}}  # the kernel does not account for swap: runtimes would refuse

    def counters(self, sandbox_id: str) -> Counters:
        return Counters(tuple(f"{self._folder(tree, sandbox_id)}/{name}" for tree, name in V1_COUNTERS), parse_v1)

    def stats(self, sandbox_id: str) -> SandboxStats:
        with self.counters(sandbox_id) as counters:
            return counters.read()

    def oom_kills(self, sandbox_id: str) -> int:
        return groups.table(Path(self._folder("memory", sandbox_id), "memory.oom_control")).get("oom_kill", 0)

    def set_cpus(self, sandbox_id: str, cpus: float) -> None:
        folder = self._folder("cpu", sandbox_id)
        groups.write(f"{folder}/cpu.cfs_quota_us", b"%d" % quota(cpus))
        groups.write(f"{folder}/cpu.shares", b"%d" % CPU_SHARES)

    def set_limits(self, sandbox_id: str, memory_bytes: int, cpus: float) -> None:
        memory = self._folder("memory", sandbox_id)
        for name in ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"):  # the first is never below the second
            with contextlib.suppress(FileNotFoundError):  # the kernel does not account for swap
                groups.write(f"{memory}/{name}", b"%d" % memory_bytes)
        self.set_cpus(sandbox_id, cpus)

    def freeze(self, sandbox_id: str) -> bool:
        state = os.open(f"{self._folder('freezer', sandbox_id)}/freezer.state", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(state, b"FROZEN")
            return os.pread(state, 16, 0).startswith(b"FROZEN")
        finally:
            os.close(state)

    def thaw(self, sandbox_id: str) -> None:
        groups.write(f"{self._folder('freezer', sandbox_id)}/freezer.state", b"THAWED")

    def end_frozen(self, sandbox_id: str) -> None:
        folder = Path(self._folder("freezer", sandbox_id))
        groups.signal_all(groups.processes(folder))
        groups.thaw_below(folder)

    def kill(self, sandbox_id: str) -> None:
        trees = (Path(self._folder(controller, sandbox_id)) for controller in ("pids", "freezer"))
        groups.bury(groups.kill_all(*trees))

    def remove(self, sandbox_id: str) -> None:
        deadline = time.monotonic() + groups.REMOVE_SECONDS
        for tree in self._trees():
            groups.remove_tree(tree / self._parent / sandbox_id, deadline)

    def ids(self) -> list[str]:
        return groups.children(self._root / "memory" / self._parent)

    def close(self) -> None:
        groups.bury(groups.kill_all(*(tree / self._parent for tree in self._trees())))
        deadline = time.monotonic() + groups.REMOVE_SECONDS
        for tree in self._trees():
            groups.remove_tree(tree / self._parent, deadline)
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
        shared.make(folder)
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

    def _folder(self, sandbox_id: str) -> str:
        return f"{self._root}/{self._parent}/{sandbox_id}"

    def path(self, sandbox_id: str) -> str:
        return f"/{self._parent}/{sandbox_id}"

    def shares(self, shares: int) -> int:
        """runc and crun turn 2 … 262,144 into weights of 1 … 10,000, which makes 39 of the usual 1024."""
        weight = max(1, shares * CPU_WEIGHT // CPU_SHARES)
        return 2 + -(-(weight - 1) * 262_142 // 9_999)

    def memory(self, limit: int) -> dict[str, Any]:
        # The group dies as a whole: half an instance would hang instead of being replaced.
        return {"memory": {"limit": limit, "swap": limit}, "unified": {"memory.oom.group": "1"}}

    def counters(self, sandbox_id: str) -> Counters:
        return Counters(tuple(f"{self._folder(sandbox_id)}/{name}" for name in V2_COUNTERS), parse_v2)

    def stats(self, sandbox_id: str) -> SandboxStats:
        with self.counters(sandbox_id) as counters:
            return counters.read()

    def oom_kills(self, sandbox_id: str) -> int:
        return groups.table(Path(self._folder(sandbox_id), "memory.events")).get("oom_kill", 0)

    def set_cpus(self, sandbox_id: str, cpus: float) -> None:
        folder = self._folder(sandbox_id)
        groups.write(f"{folder}/cpu.max", b"%d %d" % (quota(cpus), PERIOD_MICROSECONDS))
        groups.write(f"{folder}/cpu.weight", b"%d" % CPU_WEIGHT)

    def set_limits(self, sandbox_id: str, memory_bytes: int, cpus: float) -> None:
        groups.write(f"{self._folder(sandbox_id)}/memory.max", b"%d" % memory_bytes)
        self.set_cpus(sandbox_id, cpus)

    def freeze(self, sandbox_id: str) -> bool:
        folder = self._folder(sandbox_id)
        groups.write(f"{folder}/cgroup.freeze", b"1")
        return groups.table(Path(folder, "cgroup.events")).get("frozen") == 1

    def thaw(self, sandbox_id: str) -> None:
        groups.write(f"{self._folder(sandbox_id)}/cgroup.freeze", b"0")

    def end_frozen(self, sandbox_id: str) -> None:
        folder = Path(self._folder(sandbox_id))
        try:
            groups.write(f"{folder}/cgroup.kill", b"1")
        except OSError:  # before Linux 5.14 there is no such file
            groups.signal_all(groups.processes(folder))

    def kill(self, sandbox_id: str) -> None:
        self.end_frozen(sandbox_id)
        groups.bury(groups.kill_all(Path(self._folder(sandbox_id))))

    def remove(self, sandbox_id: str) -> None:
        groups.remove_tree(Path(self._folder(sandbox_id)), time.monotonic() + groups.REMOVE_SECONDS)

    def ids(self) -> list[str]:
        return groups.children(self._root / self._parent)

    def close(self) -> None:
        folder = self._root / self._parent
        groups.bury(groups.kill_all(folder))
        groups.remove_tree(folder, time.monotonic() + groups.REMOVE_SECONDS)
        with contextlib.suppress(OSError):
            (self._root / "faas").rmdir()


def for_machine(server_id: str, root: Path = ROOT) -> CgroupsV1 | CgroupsV2:
    return CgroupsV2(server_id, root) if is_v2(root) else CgroupsV1(server_id, root)


def counters_at(path: str, root: Path = ROOT) -> Counters:
    """Of the group at a `Cgroups.path`. Whoever has not opened the groups may read them too: they are everybody's."""
    if is_v2(root):
        return Counters(tuple(f"{root}{path}/{name}" for name in V2_COUNTERS), parse_v2)
    return Counters(tuple(f"{root}/{controller}{path}/{name}" for controller, name in V1_COUNTERS), parse_v1)


def thawing_at(path: str, root: Path = ROOT) -> tuple[str, bytes]:
    """The file that lets the group at a `Cgroups.path` go on, and what is written there."""
    if is_v2(root):
        return f"{root}{path}/cgroup.freeze", b"0"
    return f"{root}/freezer{path}/freezer.state", b"THAWED"
