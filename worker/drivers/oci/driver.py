"""The `oci` driver: sandboxes straight from unpacked layers through an OCI runtime program, without a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from faas.errors import Conflict, FaasError, Unavailable
from faas.oci.source import ImageSource
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
from worker.drivers.oci import mounts, seccomp
from worker.drivers.oci import runtime as runtimes
from worker.drivers.oci.bundle import configuration
from worker.drivers.oci.cgroups import for_machine
from worker.drivers.oci.furniture import Furniture
from worker.drivers.oci.ownership import OwnedLayers
from worker.drivers.oci.process import Process, become_subreaper, stream
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.scratch import ScratchPool
from worker.layers.store import LayerStore, UnpackedImage
from worker.network.egress import Egress
from worker.network.pool import NamespacePool

log = logging.getLogger("worker.drivers.oci")

RUN = Path("/run/faas")
THREADS = 8  # starts, mounts, clean-up at once; a start is CPU, so more would only make each slower
UNPACKERS = 2  # layers unpacked at once, apart: they take seconds
KILL_SECONDS = 5.0
T = TypeVar("T")


class OciDriver:
    """Implements `worker.drivers.base.Driver`.

    What has begun is finished: a caller that is cancelled leaves no half-made sandbox and no half-done removal.
    """

    name = "oci"

    def __init__(self, paths: DriverPaths, source: ImageSource, *, runtime: str = "", subnet: str = "") -> None:
        self._run = run = RUN / paths.server_id
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="oci")
        self._unpackers = ThreadPoolExecutor(UNPACKERS, thread_name_prefix="layers")
        self._layers = LayerStore(paths.data / "layers", run / "l", source, architecture(), self._unpackers)
        self._cgroups = for_machine(paths.server_id)
        self._scratch = ScratchPool(paths.data / "scratch", run / "scratch", self._threads)
        self._namespaces = NamespacePool(Egress(paths.server_id, subnet), self._threads)
        self._owned = OwnedLayers(run / "owned")
        self._furniture = Furniture(run / "furniture")
        self._wanted_runtime = runtime
        self._runtime: runtimes.Runtime
        self._sandboxes: dict[str, OciSandbox] = {}
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[Any]] = set()
        self._seccomp: dict[str, Any] = seccomp.profile()

    @staticmethod
    def missing(runtime: str = "") -> list[str]:
        """Why this driver cannot run here, in words; empty where it can."""
        reasons = []
        if os.geteuid() != 0:
            reasons.append("not root")
        if runtimes.find(runtime) is None:
            reasons.append(f"{runtime or 'runc'} is not installed")
        if "overlay" not in Path("/proc/filesystems").read_text():
            reasons.append("the kernel has no overlayfs (modprobe overlay)")
        if not Path("/dev/loop-control").exists():
            reasons.append("the kernel has no loop devices (modprobe loop)")
        reasons += [f"{tool} is not installed" for tool in ("nft", "ip", "mkfs.ext4") if not shutil.which(tool)]
        return reasons

    async def open(self) -> None:
        program = runtimes.find(self._wanted_runtime)
        reasons = self.missing(self._wanted_runtime)
        if reasons or program is None:
            raise Unavailable("the oci driver cannot run: " + "; ".join(reasons), hint="run faas doctor")
        become_subreaper()
        self._runtime = runtimes.Runtime(program, self._run / "runtime")
        try:
            await self._in_thread(lambda: self._prepare_machine(program))
        except OSError as error:
            raise Unavailable(f"this machine cannot run sandboxes: {error}", hint="run faas doctor") from None
        await self._namespaces.open()

    def _prepare_machine(self, program: str) -> None:
        """Blocking. End and remove what a crashed server of this data folder left, then make everything anew."""
        runtimes.warn_if_old(program)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._cgroups.open()
        self._leave_nothing()
        self._cgroups.open()
        self._run.mkdir(mode=0o700, parents=True)
        # A file system of its own that passes no mount on: other mount namespaces never hold an instance's root.
        mounts.mount("faas", self._run, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=0700")
        mounts.mount("", self._run, "", mounts.MS_PRIVATE)
        for name in ("bundles", "runtime", "empty", "furniture"):
            (self._run / name).mkdir(mode=0o711)
        self._layers.open()
        self._scratch.open()

    def _leave_nothing(self) -> None:
        """Blocking. Processes, mounts, folders and groups of this server."""
        self._cgroups.close()
        for point in mounts.mounted_below(self._run):
            mounts.unmount(point)
        for folder in (self._run, RUN):
            with contextlib.suppress(OSError):  # RUN may hold another server's
                folder.rmdir()

    async def close(self) -> None:
        await asyncio.gather(*(self.delete(sandbox_id) for sandbox_id in list(self._sandboxes)))
        while self._work:
            await asyncio.gather(*self._work, return_exceptions=True)
        await self._namespaces.close()
        await self._scratch.close()
        await self._in_thread(self._leave_nothing)
        self._threads.shutdown(wait=False)
        self._unpackers.shutdown(wait=False)

    async def prepare(self, reference: str) -> PreparedImage:
        image = await self._layers.image(reference)
        return PreparedImage(reference, image.config, image)

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.id in self._sandboxes:
            raise Conflict(f"there is a sandbox {spec.id} already")
        sandbox = OciSandbox(spec, self._run / "bundles" / spec.id, asyncio.get_running_loop().create_future())
        self._sandboxes[spec.id] = sandbox
        try:
            await self._to_the_end(self._create(sandbox))
        except BaseException:
            await self.delete(spec.id)
            raise
        return sandbox

    async def _create(self, sandbox: OciSandbox) -> None:
        spec = sandbox.spec
        sandbox.namespace = await self._namespaces.take(spec.network)
        if spec.tmp_bytes:
            sandbox.scratch = await self._scratch.take(spec.tmp_bytes)
        for name in ("stdout", "stderr"):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            sandbox.outputs.append(writing)
            reader, transport = await stream(reading)
            setattr(sandbox, name, reader)
            sandbox.transports.append(transport)
        await self._in_thread(lambda: self._furnish(sandbox))

    def _furnish(self, sandbox: OciSandbox) -> None:
        """Blocking. The root file system and the configuration."""
        spec, scratch, image = sandbox.spec, sandbox.scratch, sandbox.spec.image.handle
        assert isinstance(image, UnpackedImage)
        assert sandbox.namespace is not None
        sandbox.root.mkdir(parents=True)
        layers, upper = (*image.layers, self._furniture.layer(spec.hostname)), None
        if spec.writable_root:
            if scratch is None:
                raise Unavailable("a writable root needs ephemeral_storage")
            layers, upper = self._owned.layers(layers, spec.user), scratch.folder
            os.chown(scratch.upper, *spec.user)
        mounts.mount_root(layers, sandbox.root, upper, self._run / "empty")
        config = configuration(
            spec,
            root=sandbox.root,
            namespace=sandbox.namespace.path,
            cgroup=self._cgroups.path(spec.id),
            memory=self._cgroups.memory(spec.memory_bytes),
            seccomp=self._seccomp,
            tmp=scratch.tmp if scratch else None,
        )
        # It holds the function's environment: for root alone.
        with open(os.open(sandbox.bundle / "config.json", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(config, file)

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, OciSandbox)
        if sandbox.state is not SandboxState.CREATED or sandbox.starting:
            raise Conflict(f"the sandbox {sandbox.id} is not merely created")
        sandbox.starting = asyncio.create_task(self._start(sandbox))
        await self._to_the_end(sandbox.starting)

    async def _start(self, sandbox: OciSandbox) -> None:
        try:
            pid = await self._in_thread(lambda: self._runtime.run(sandbox.id, sandbox.bundle, *sandbox.outputs))
        finally:
            sandbox.close_outputs()

        def ended(outcome: Exit) -> None:
            sandbox.state = SandboxState.STOPPED
            if not sandbox.exited.done():  # cancelled together with somebody who waited for it
                sandbox.exited.set_result(outcome)

        sandbox.process = Process(pid, lambda: self._cgroups.oom_kills(sandbox.id), ended)
        sandbox.state = SandboxState.RUNNING

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, OciSandbox)
        if sandbox.starting:
            await asyncio.wait([sandbox.starting])
        if sandbox.process is None:
            sandbox.never_ran()
            return
        sandbox.process.kill()
        if not await _ended(sandbox):
            await self._in_thread(lambda: self._cgroups.kill(sandbox.id))
            if not await _ended(sandbox):
                raise Unavailable(f"the instance {sandbox.id} does not die")

    async def delete(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return
        task = self._removals.get(sandbox_id)
        if task is None:
            task = asyncio.create_task(self._delete(sandbox))
            self._removals[sandbox_id] = task
            task.add_done_callback(lambda _: self._removals.pop(sandbox_id, None))
        await self._to_the_end(task)

    async def _delete(self, sandbox: OciSandbox) -> None:
        try:
            await self.kill(sandbox)
        except TimeoutError:
            log.error("an instance does not die", extra={"instance": sandbox.id})
        sandbox.close_outputs()
        sandbox.close_sockets()
        await self._in_thread(lambda: self._remove(sandbox))
        if sandbox.scratch is not None:
            await self._scratch.discard(sandbox.scratch)
        if sandbox.namespace is not None:
            await self._namespaces.discard(sandbox.namespace)
        del self._sandboxes[sandbox.id]

    def _remove(self, sandbox: OciSandbox) -> None:
        """Blocking. What a failed start left running, the root, the bundle, the runtime's record, the groups."""
        self._cgroups.kill(sandbox.id)
        try:
            mounts.unmount(sandbox.root)
        except FaasError as error:
            log.error("%s", error, extra={"instance": sandbox.id})
        shutil.rmtree(sandbox.bundle, ignore_errors=True)
        self._runtime.forget(sandbox.id)
        self._cgroups.remove(sandbox.id)

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        with contextlib.suppress(FileNotFoundError):  # it has ended
            await self._in_thread(lambda: self._cgroups.set_cpus(sandbox.id, cpus))

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, OciSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        return sorted({*self._sandboxes, *await self._in_thread(self._cgroups.ids)})

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        return self._cgroups.stats(sandbox.id)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _to_the_end(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """Await `work`; where the caller is cancelled it is finished all the same, before that is heard."""
        task = work if isinstance(work, asyncio.Task) else asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # looked at: the caller is not there to hear it
            raise


async def _ended(sandbox: OciSandbox) -> bool:
    """Whether it ended within the time that a kill may take."""
    done, _ = await asyncio.wait((sandbox.exited,), timeout=KILL_SECONDS)
    return bool(done)
