"""`Bundles`: each sandbox's folder on this machine (runtime-spec, bundle.md): root file system, configuration, groups.

Everything but `refurnish` blocks: call it in a thread.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

from faas.errors import FaasError, Unavailable
from worker.drivers.base import SandboxSpec
from worker.drivers.linux import mounts, seccomp, secret_files
from worker.drivers.linux.cgroups import Cgroups
from worker.drivers.oci import attachment, workdir
from worker.drivers.oci.bundle import configuration
from worker.drivers.oci.furniture import Furniture
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.standing import Standing
from worker.drivers.oci.supplies import Supplies
from worker.layers.store import UnpackedImage

log = logging.getLogger("worker.drivers.oci")

SPARE_SHARES = 2  # of the CPU, as long as it serves nobody: everybody else comes first


class Bundles:
    """Below `run`."""

    def __init__(
        self, run: Path, layers: Path, cgroups: Cgroups, supplies: Supplies, resolvers: tuple[Path, ...]
    ) -> None:
        self._folder = run / "bundles"
        self._empty = run / "empty"
        self._cgroups = cgroups
        self._supplies = supplies
        self._namespaces = supplies.namespaces
        self._furniture = Furniture(layers, run, resolvers)
        self._seccomp = seccomp.profile()

    def folder(self, sandbox_id: str) -> Path:
        return self._folder / sandbox_id

    def open(self) -> None:
        self._furniture.open()

    def furnish(self, sandbox: OciSandbox) -> None:
        """The root file system and the configuration, with what it was given, and the rest of that. Raises OSError,
        FaasError."""
        self._supplies.make(sandbox)
        spec, scratch, image = sandbox.spec, sandbox.scratch, sandbox.spec.image.handle
        assert isinstance(image, UnpackedImage)
        identity = sandbox.identity
        assert sandbox.namespace is not None
        assert identity is not None
        # The runtime's first process is root inside: it has to come as far as its root, and nobody else.
        sandbox.root.mkdir(parents=True)
        os.chown(sandbox.bundle, 0, identity.root)
        sandbox.bundle.chmod(0o710)
        if spec.writable_root and scratch is None:
            raise Unavailable("a writable root needs ephemeral_storage")
        if scratch is not None:
            scratch.belong(identity.root, identity.on_host)
        sandbox.furniture = self._furnished(spec, parked=sandbox.is_parked)
        layers = identity.layers((*image.layers, sandbox.furniture))
        upper = scratch.folder if spec.writable_root and scratch else None
        mounts.mount_root(layers, sandbox.root, upper, self._empty)
        workdir.check(sandbox.root, spec.workdir)
        self._namespaces.adapt(sandbox.namespace, spec.memory_bytes)
        secrets = _secrets(sandbox, spec)
        config = configuration(
            spec,
            user=identity.user,
            maps=identity.maps,
            root=sandbox.root,
            namespace=sandbox.namespace.path,
            cgroup=self._cgroups.path(sandbox.name),
            memory=self._cgroups.memory(spec.memory_bytes),
            seccomp=self._seccomp,
            tmp=scratch.tmp if scratch else None,
            secrets=secrets,
            cpu_shares=self._cgroups.shares(SPARE_SHARES if sandbox.is_parked or sandbox.is_ahead else sandbox.shares),
        )
        # It holds the function's environment: in memory, for root alone.
        with open(os.open(sandbox.bundle / "config.json", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(config, file)

    def refurnish(self, stem: OciSandbox, spec: SandboxSpec, standing: Standing, process: int) -> None:
        """Give a stem, whose first process is `process` (a pidfd), the limits and the files of `spec`. Raises OSError,
        and Unavailable where an ordinary start has to see to something first: this one is too quick for a thread."""
        furniture = self._furniture.known(spec.hostname, with_secrets=True)
        if stem.furniture != furniture or not self._namespaces.is_current:
            raise Unavailable("this machine's resolver has changed since it was started")
        if stem.namespace is not None:
            self._namespaces.adapt(stem.namespace, spec.memory_bytes)
        self._cgroups.set_limits(stem.name, spec.memory_bytes, spec.cpus)
        assert stem.identity is not None
        layers = stem.identity.layers(standing.layers)
        secrets = _secrets(stem, spec)
        attachment.attach(layers, standing.places, process, self._empty, secrets)

    def claim(self, made: OciSandbox) -> None:
        """Make what was made ahead an instance's. Raises Unavailable where a new one would differ from it."""
        spec = made.spec
        if made.furniture != self._furnished(spec):
            raise Unavailable("this machine's resolver has changed since it was made")
        if made.namespace is not None:
            self._namespaces.adapt(made.namespace, spec.memory_bytes)
        self._cgroups.set_limits(made.name, spec.memory_bytes, spec.cpus)

    def hide(self, sandbox: OciSandbox) -> None:
        """Unmount here what a sandbox that has started has in a mount namespace of its own. Raises FaasError."""
        mounts.unmount(sandbox.root)
        if sandbox.scratch is not None and not sandbox.is_looked_into:
            sandbox.scratch.hide()
        if sandbox.identity is not None and not sandbox.is_parked:  # a stem's function is still to come
            sandbox.identity.hide()

    def _furnished(self, spec: SandboxSpec, *, parked: bool = False) -> Path:
        """A stem may become anything: it has all mount points."""
        return self._furniture.layer(spec.hostname, with_secrets=parked or bool(spec.secrets.values))

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


def _secrets(sandbox: OciSandbox, spec: SandboxSpec) -> Path | None:
    """The folder of its secrets, which goes with its bundle: below `run`, which is memory."""
    if not spec.secrets.values:
        return None
    assert sandbox.identity is not None
    folder = sandbox.bundle / "secrets"
    secret_files.write(folder, spec.secrets.values, sandbox.identity.on_host)
    return folder
