"""The `oci` driver: sandboxes straight from unpacked layers through an OCI runtime program, without a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from faas.errors import Conflict, FaasError, Unavailable
from faas.oci.source import ImageSource
from faas.spec import Network
from worker.drivers.base import (
    DriverPaths,
    Exit,
    PreparedImage,
    Sandbox,
    SandboxSpec,
    SandboxState,
    SandboxStats,
    architecture,
)
from worker.drivers.oci import runtime as runtimes
from worker.drivers.oci import seccomp
from worker.drivers.oci.bundle import configuration
from worker.drivers.oci.cgroups import for_machine
from worker.drivers.oci.mounts import mount_root, mounted_below, unmount
from worker.drivers.oci.ownership import OwnedLayers
from worker.drivers.oci.process import Process, become_subreaper, stream
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.scratch import ScratchPool
from worker.layers.store import LayerStore, UnpackedImage
from worker.network.egress import Egress
from worker.network.pool import NamespacePool
from worker.network.resolver import write_files

log = logging.getLogger("worker.drivers.oci")

RUN = Path("/run/faas")
THREADS = 8
KILL_SECONDS = 5.0
T = TypeVar("T")


class OciDriver:
    """Implements `worker.drivers.base.Driver`."""

    name = "oci"

    def __init__(self, paths: DriverPaths, source: ImageSource, *, runtime: str = "", subnet: str = "") -> None:
        self._paths = paths
        self._run = RUN / paths.server_id
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="oci")
        self._layers = LayerStore(paths.data / "layers", source, architecture(), self._threads)
        self._cgroups = for_machine(paths.server_id)
        self._scratch = ScratchPool(paths.data / "scratch", self._run / "scratch", self._threads)
        self._egress = Egress(paths.server_id, subnet)
        self._namespaces = NamespacePool(self._egress, self._threads)
        self._owned = OwnedLayers(self._run / "owned")
        self._wanted_runtime = runtime
        self._runtime: runtimes.Runtime
        self._sandboxes: dict[str, OciSandbox] = {}
        self._seccomp: dict[str, Any] = seccomp.profile()
        self._resolver = self._hosts = Path()

    @staticmethod
    def missing(runtime: str = "") -> list[str]:
        """Why this driver cannot run here, in words; empty where it can."""
        reasons = []
        if os.geteuid() != 0:
            reasons.append("not root")
        if runtimes.find(runtime) is None:
            reasons.append(f"{runtime or 'runc'} is not installed")
        if "overlay" not in Path("/proc/filesystems").read_text():
            reasons.append("the kernel has no overlayfs")
        reasons += [f"{tool} is not installed" for tool in ("nft", "ip", "mkfs.ext4") if not shutil.which(tool)]
        return reasons

    async def open(self) -> None:
        program = runtimes.find(self._wanted_runtime)
        reasons = self.missing(self._wanted_runtime)
        if reasons or program is None:
            raise Unavailable("the oci driver cannot run: " + "; ".join(reasons), hint="run faas doctor")
        become_subreaper()
        self._runtime = runtimes.Runtime(program, self._run / "runtime")
        await self._in_thread(lambda: self._sweep(program))
        await self._namespaces.open()

    def _sweep(self, program: str) -> None:
        """Blocking. End and remove what a crashed server of this data folder left, then make the folders."""
        runtimes.warn_if_old(program)
        for sandbox_id in self._cgroups.ids():
            self._cgroups.kill(sandbox_id)
            self._cgroups.remove(sandbox_id)
        for point in mounted_below(self._run):
            unmount(point)
        shutil.rmtree(self._run, ignore_errors=True)
        for folder in (self._run, self._run / "bundles", self._run / "runtime", self._run / "empty"):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._resolver, self._hosts = write_files(self._run / "etc")
        self._cgroups.open()
        self._layers.open()
        self._scratch.open()

    async def close(self) -> None:
        await asyncio.gather(*(self.delete(sandbox_id) for sandbox_id in list(self._sandboxes)))
        await self._namespaces.close()
        await self._scratch.close()
        await self._in_thread(self._leave_nothing)
        self._threads.shutdown(wait=False)

    def _leave_nothing(self) -> None:
        for point in mounted_below(self._run):
            unmount(point)
        shutil.rmtree(self._run, ignore_errors=True)
        with contextlib.suppress(OSError):
            RUN.rmdir()
        self._cgroups.close()

    async def prepare(self, reference: str) -> PreparedImage:
        image = await self._layers.image(reference)
        return PreparedImage(reference, image.config, image)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.id in self._sandboxes:
            raise Conflict(f"there is a sandbox {spec.id} already")
        image = spec.image.handle
        assert isinstance(image, UnpackedImage)
        namespace = await self._namespaces.take(spec.network)
        scratch = None
        try:
            if spec.tmp_bytes:
                scratch = await self._scratch.take(spec.tmp_bytes)
            sandbox = await self._furnish(spec, namespace, scratch)
        except BaseException:
            if scratch is not None:
                await self._scratch.discard(scratch)
            await self._namespaces.discard(namespace)
            raise
        self._sandboxes[spec.id] = sandbox
        try:
            await self._in_thread(lambda: self._mount(sandbox, image))
        except BaseException:
            await self.delete(spec.id)
            raise
        return sandbox

    async def _furnish(self, spec: SandboxSpec, namespace: Any, scratch: Any) -> OciSandbox:
        out_read, out_write = runtimes.open_pipe()
        err_read, err_write = runtimes.open_pipe()
        stdout, out_transport = await stream(out_read)
        stderr, err_transport = await stream(err_read)
        return OciSandbox(
            spec=spec,
            bundle=self._run / "bundles" / spec.id,
            namespace=namespace,
            stdout=stdout,
            stderr=stderr,
            transports=(out_transport, err_transport),
            exited=asyncio.get_running_loop().create_future(),
            outputs=[out_write, err_write],
            scratch=scratch,
        )

    def _mount(self, sandbox: OciSandbox, image: UnpackedImage) -> None:
        """Blocking. The root file system and the configuration."""
        spec, scratch = sandbox.spec, sandbox.scratch
        sandbox.root.mkdir(parents=True)
        layers, upper = image.layers, None
        if spec.writable_root:
            if scratch is None:
                raise Unavailable("a writable root needs ephemeral_storage")
            layers, upper = self._owned.layers(image, spec.user), scratch.folder
            os.chown(scratch.folder / "upper", *spec.user)
        mount_root(layers, sandbox.root, upper, self._run / "empty")
        outbound = spec.network is Network.OUTBOUND
        config = configuration(
            spec,
            root=sandbox.root,
            namespace=sandbox.namespace.path,
            cgroup=self._cgroups.path(spec.id),
            seccomp=self._seccomp,
            tmp=scratch.tmp if scratch else None,
            resolver=self._resolver if outbound else None,
            hosts=self._hosts if outbound else None,
        )
        target = sandbox.bundle / "config.json"
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT, 0o600)  # it holds the function's environment
        with open(descriptor, "w") as file:
            json.dump(config, file)

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, OciSandbox)
        try:
            pid = await self._runtime.run(sandbox.id, sandbox.bundle, *sandbox.outputs)
        finally:
            for descriptor in sandbox.outputs:
                os.close(descriptor)
            sandbox.outputs.clear()
        sandbox.process = Process(pid, lambda: self._cgroups.oom_kills(sandbox.id) > 0)
        sandbox.state = SandboxState.RUNNING
        sandbox.process.exited.add_done_callback(lambda done: self._ended(sandbox, done.result()))

    @staticmethod
    def _ended(sandbox: OciSandbox, outcome: Exit) -> None:
        sandbox.state = SandboxState.STOPPED
        if not sandbox.exited.done():
            sandbox.exited.set_result(outcome)

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, OciSandbox)
        if sandbox.process is None:
            sandbox.state = SandboxState.STOPPED
            if not sandbox.exited.done():
                sandbox.exited.set_result(Exit(137, 9))
            return
        sandbox.process.kill()
        try:
            await asyncio.wait_for(asyncio.shield(sandbox.exited), KILL_SECONDS)
        except TimeoutError:
            await self._in_thread(lambda: self._cgroups.kill(sandbox.id))
            await asyncio.wait_for(asyncio.shield(sandbox.exited), KILL_SECONDS)

    async def delete(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.deleted:
            return
        sandbox.deleted = True
        try:
            await self.kill(sandbox)
        except TimeoutError:
            log.error("an instance does not die", extra={"instance": sandbox_id})
        for descriptor in sandbox.outputs:
            os.close(descriptor)
        sandbox.outputs.clear()
        sandbox.close_sockets()
        await self._in_thread(lambda: self._remove(sandbox))
        if sandbox.scratch is not None:
            await self._scratch.discard(sandbox.scratch)
        await self._namespaces.discard(sandbox.namespace)
        self._sandboxes.pop(sandbox_id, None)

    def _remove(self, sandbox: OciSandbox) -> None:
        """Blocking. The root, the bundle, the runtime's record, the groups."""
        try:
            unmount(sandbox.root)
        except FaasError as error:
            log.error("cannot unmount: %s", error, extra={"instance": sandbox.id})
        shutil.rmtree(sandbox.bundle, ignore_errors=True)
        self._runtime.forget(sandbox.id)
        self._cgroups.remove(sandbox.id)

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        self._cgroups.set_cpus(sandbox.id, cpus)

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, OciSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        return sorted({*self._sandboxes, *await self._in_thread(self._cgroups.ids)})

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        return self._cgroups.stats(sandbox.id)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
