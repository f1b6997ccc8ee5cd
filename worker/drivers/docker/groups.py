"""The control groups of an engine's containers: read from /proc, since each engine puts them where it likes.

dockerd's `cgroupfs` manager obeys the parent it is given; under `systemd` (Debian 12 as installed) a container is
`/system.slice/docker-<id>.scope`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from worker.drivers.linux.cgroups import CgroupsV1, CgroupsV2, is_v2

PROC = Path("/proc")


def _listed(process: int, controller: str, proc: Path) -> str:
    """The path of a process's group, "" where it has ended: rows are `number:controllers:path` (cgroups(7))."""
    with contextlib.suppress(OSError):
        for row in (proc / str(process) / "cgroup").read_text().splitlines():
            _, controllers, path = row.split(":", 2)
            if controller in controllers.split(","):
                return path
    return ""


class ContainerGroupsV1(CgroupsV1):
    """Groups are named by their whole path."""

    def of(self, process: int, container: str, proc: Path = PROC) -> str:
        """Blocking. The group of `container`, whose first process this is; "" where it has ended."""
        path = _listed(process, "memory", proc)
        return path if container in path else ""  # else the number is another process's by now

    def _folder(self, controller: str, group: str) -> str:
        return f"{self._root}/{controller}/{group.lstrip('/')}"


class ContainerGroupsV2(CgroupsV2):
    """Groups are named by their whole path."""

    def of(self, process: int, container: str, proc: Path = PROC) -> str:
        """Blocking. As under v1; from here on the group dies as a whole, which no engine can be asked for."""
        path = _listed(process, "", proc)
        if container not in path:
            return ""
        with contextlib.suppress(OSError):  # it has just ended
            Path(self._folder(path), "memory.oom.group").write_text("1")
        return path

    def _folder(self, group: str) -> str:
        return f"{self._root}/{group.lstrip('/')}"


def container_groups(server_id: str) -> ContainerGroupsV1 | ContainerGroupsV2:
    return ContainerGroupsV2(server_id) if is_v2() else ContainerGroupsV1(server_id)
