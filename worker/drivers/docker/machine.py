"""`Machine`: what the docker driver makes on this machine, that is a folder, a firewall and control groups, and in the
engine, a network and the pause image. Everything blocks."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from worker import shared
from worker.drivers.base import SandboxSpec
from worker.drivers.docker.engine import Engine
from worker.drivers.docker.groups import container_groups
from worker.drivers.docker.image import pause_image
from worker.drivers.linux import mounts, seccomp, secret_files
from worker.network.firewall import BridgeFirewall

RUN = Path("/run/faas")
CNI_ADDRESSES = Path("/var/lib/cni/networks")  # by network; stays when that is removed


class Machine:
    """Of one server. `seccomp` is what a container is given as its list of system calls, `cgroup_parent` the group that
    containers are to be in; None where the engine decides that."""

    def __init__(self, engine: Engine, server_id: str) -> None:
        self.bridge = f"fd{server_id}"
        self.run = RUN / f"{server_id}-docker"
        self.scratch = self.run / "scratch"
        self._secrets = self.run / "secrets"
        self.groups = container_groups(server_id)
        self.seccomp = ""
        self.cgroup_parent: str | None = None
        self._engine = engine
        self._firewall = BridgeFirewall(f"faas_{server_id}_docker", self.bridge)

    def prepare(self) -> None:
        """Remove what a crashed server left, then make it anew."""
        if self._engine.cgroupfs:
            self.cgroup_parent = self.groups.path("").rstrip("/")
        self.sweep()
        self.leave_nothing(())
        shared.make(self.run, 0o700)
        self._secrets.mkdir(mode=0o700)
        mounts.mount("faas", self._secrets, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC, "mode=0700")
        self.seccomp = json.dumps(seccomp.profile())
        if self._engine.podman:  # takes the list from a file alone
            self._seccomp_file.write_text(self.seccomp)
            self.seccomp = str(self._seccomp_file)
        if self.cgroup_parent:
            self.groups.open()
        self._engine.ensure_image(*pause_image())
        self._engine.make_bridge(self.bridge)
        self._firewall.open()

    def keep_secrets(self, spec: SandboxSpec) -> Path | None:
        """The folder of a sandbox's secrets, in memory; None where it has none. Whoever its user is on this machine may
        read them: nobody but root comes to the folder above."""
        if not spec.secrets.values:
            return None
        secret_files.write(self._secrets / spec.id, spec.secrets.values, spec.user, others=True)
        return self._secrets / spec.id

    def forget_secrets(self, sandbox_id: str) -> None:
        folder = self._secrets / sandbox_id
        if folder.parent == self._secrets:  # an id of somebody's own may be none
            secret_files.remove(folder)

    @property
    def _seccomp_file(self) -> Path:
        return self.run / "seccomp.json"

    def sweep(self) -> None:
        """What the engine has."""
        self._engine.sweep()
        if self._engine.podman:
            shutil.rmtree(CNI_ADDRESSES / self.bridge, ignore_errors=True)
        self._firewall.close()

    def leave_nothing(self, groups: Iterable[str]) -> None:
        """Processes, those in `groups` too, mounts and folders, without the engine."""
        for group in groups:
            self.groups.kill(group)
        if self.cgroup_parent:
            self.groups.close()
        for point in mounts.mounted_below(self.run):
            mounts.unmount(point)
            with contextlib.suppress(OSError):
                point.rmdir()
        self._seccomp_file.unlink(missing_ok=True)
        for folder in (self.scratch, self._secrets, self.run, RUN):
            with contextlib.suppress(OSError):  # RUN may hold another server's
                folder.rmdir()
