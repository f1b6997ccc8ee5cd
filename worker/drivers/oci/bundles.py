"""`Bundles`: each sandbox's folder on this machine (runtime-spec, bundle.md): root file system, configuration, groups.

Everything blocks: call it in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from faas.errors import FaasError, Unavailable
from faas.spec import Network
from worker.drivers.base import SandboxSpec
from worker.drivers.oci import attachment, mounts, seccomp, workdir
from worker.drivers.oci.bundle import configuration
from worker.drivers.oci.cgroups import CPU_SHARES, Cgroups
from worker.drivers.oci.furniture import Furniture
from worker.drivers.oci.ownership import OwnedLayers
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.standing import Standing
from worker.layers.store import UnpackedImage
from worker.network.egress import Egress

log = logging.getLogger("worker.drivers.oci")

STEM_SHARES = 2  # of the CPU, as long as it serves nobody: everybody else comes first


class Bundles:
    """Below `run`."""

    def __init__(self, run: Path, cgroups: Cgroups, egress: Egress, resolvers: tuple[Path, ...]) -> None:
        self._folder = run / "bundles"
        self._empty = run / "empty"
        self._cgroups = cgroups
        self._egress = egress
        self._owned = OwnedLayers(run / "owned")
        self._furniture = Furniture(run / "furniture", resolvers)
        self._seccomp = seccomp.profile()

    def folder(self, sandbox_id: str) -> Path:
        return self._folder / sandbox_id

    def furnish(self, sandbox: OciSandbox) -> None:
        """The root file system and the configuration. Raises OSError, FaasError."""
        spec, scratch, image = sandbox.spec, sandbox.scratch, sandbox.spec.image.handle
        assert isinstance(image, UnpackedImage)
        assert sandbox.namespace is not None
        sandbox.root.mkdir(parents=True)
        layers, upper, owner = image.layers, None, (0, 0)
        if spec.writable_root:
            if scratch is None:
                raise Unavailable("a writable root needs ephemeral_storage")
            layers, upper, owner = self._owned.layers(layers, spec.user), scratch.folder, spec.user
            os.chown(scratch.upper, *spec.user)
        sandbox.furniture = self._furniture.layer(spec.hostname, owner)
        layers = (*layers, sandbox.furniture)
        mounts.mount_root(layers, sandbox.root, upper, self._empty)
        workdir.check(sandbox.root, spec.workdir)
        if spec.network is Network.OUTBOUND:
            self._egress.follow_resolver()
        config = configuration(
            spec,
            root=sandbox.root,
            namespace=sandbox.namespace.path,
            cgroup=self._cgroups.path(sandbox.name),
            memory=self._cgroups.memory(spec.memory_bytes),
            seccomp=self._seccomp,
            tmp=scratch.tmp if scratch else None,
            cpu_shares=STEM_SHARES if sandbox.is_parked else CPU_SHARES,
        )
        # It holds the function's environment: for root alone.
        with open(os.open(sandbox.bundle / "config.json", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(config, file)

    def refurnish(self, stem: OciSandbox, spec: SandboxSpec, standing: Standing, process: int) -> None:
        """Give a stem, whose first process is `process` (a pidfd), the limits and the files of `spec`."""
        if stem.furniture != self._furniture.layer(spec.hostname):
            raise Unavailable("this machine's resolver has changed since it was started")
        self._egress.follow_resolver()
        self._cgroups.set_limits(stem.name, spec.memory_bytes, spec.cpus)
        attachment.attach(standing.layers, standing.places, process, stem.bundle / "code", self._empty)

    def remove(self, sandbox_id: str) -> None:
        """What still runs, the root, the bundle, the groups. Raises Unavailable."""
        bundle = self.folder(sandbox_id)
        self._cgroups.kill(sandbox_id)
        try:
            mounts.unmount(bundle / "rootfs")
        except FaasError as error:
            log.error("%s", error, extra={"instance": sandbox_id})
        shutil.rmtree(bundle, ignore_errors=True)
        self._cgroups.remove(sandbox_id)
        if sandbox_id in self._cgroups.ids():
            raise Unavailable(f"the instance {sandbox_id} does not die")

    def ids(self) -> list[str]:
        """What has a group or a bundle."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return [*self._cgroups.ids(), *(bundle.name for bundle in found)]
