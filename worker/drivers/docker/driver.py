"""The `docker` driver: sandboxes through a Docker Engine or Podman's service, with the same limits and answers as the
`oci` driver.

A sandbox is two containers: a *pause* container that holds the network namespace, so that the server can listen inside
before the function runs, and the function's own, which joins that namespace. How containers end is heard from one
stream of the engine's events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from faas.background import Background
from faas.errors import Conflict, FaasError, ImageUnusable, NotOffered, Unavailable
from faas.oci.source import ImageSource
from faas.spec import Network
from worker.drivers.base import (
    DriverPaths,
    Exit,
    Lend,
    PreparedImage,
    Sandbox,
    SandboxSpec,
    SandboxState,
    SandboxStats,
    freely,
)
from worker.drivers.docker.attach import Output
from worker.drivers.docker.containers import cpu_limit, function_container
from worker.drivers.docker.engine import ENGINE_ERRORS, Engine, ImageGone
from worker.drivers.docker.events import Endings
from worker.drivers.docker.image import Archive, Images
from worker.drivers.docker.machine import Machine
from worker.drivers.docker.pauses import Pauses
from worker.drivers.docker.sandbox import DockerSandbox
from worker.drivers.docker.watches import Watches
from worker.drivers.oci.scratch import ScratchPool

log = logging.getLogger("worker.drivers.docker")

THREADS = 8
PAUSES = 2  # containers kept ready for each kind of network that is needed
KILL_SECONDS = 10.0
CLOSE_SECONDS = 15.0  # for the engine to take back what is its own
ID_LABEL = "faas.sandbox"


class DockerDriver:
    """Implements `worker.drivers.base.Driver`.

    What has begun is finished: a caller that is cancelled is let go, and what it asked for is made and then removed.
    """

    name = "docker"
    freeze_grace_seconds = 1.0  # to freeze and to thaw takes an engine some 15 ms each: not for every pause of a caller

    def __init__(self, paths: DriverPaths, source: ImageSource, *, pauses: int = PAUSES) -> None:
        self.lend: Lend = freely  # nothing of its own runs but spares
        self._engine = Engine(paths.server_id)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="scratch")  # this machine's work alone
        self._work = Background()
        self._images = Images(source, self._load)
        self._machine = Machine(self._engine, paths.server_id)
        self._groups = self._machine.groups
        self._scratch = ScratchPool(paths.data / "scratch", self._machine.scratch, self._threads)
        networks = {Network.OUTBOUND: self._machine.bridge, Network.NONE: "none"}
        self._pauses = Pauses(self._engine, pauses, networks, lambda: not len(self._work))
        self._watches = Watches(self._engine, self._died)
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._by_container: dict[str, DockerSandbox] = {}
        self._endings: Endings

    @staticmethod
    def available() -> bool:
        """Whether an engine answers here."""
        return Engine.available()

    async def open(self) -> None:
        if os.geteuid() != 0:
            raise Unavailable("the docker driver listens inside the functions' networks, which needs root", hint="sudo")
        engine = self._engine
        with engine.errors("be reached"):
            await engine.call(engine.open)
            await engine.call(self._prepare_machine)
        self._endings = Endings(engine.api, engine.label, self._known, self._died, self._back, ENGINE_ERRORS)
        self._pauses.open()

    def _prepare_machine(self) -> None:
        """Blocking. What was made before something could not be made is taken back."""
        try:
            self._machine.prepare()
            self._scratch.open()
        except Exception:
            with contextlib.suppress(FaasError), self._engine.errors("be cleaned up"):
                self._machine.sweep()
            self._machine.leave_nothing(())
            raise

    async def close(self) -> None:
        """Bounded, whatever the engine does: what it has not taken back by then the next `open` removes."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._images.close()
                half = CLOSE_SECONDS / 2
                await asyncio.gather(self._work.finish(half), self._pauses.close(half))
                await asyncio.gather(*map(self.delete, list(self._sandboxes)), return_exceptions=True)
                with self._engine.errors("be cleaned up"):
                    await self._engine.call(self._machine.sweep)
        except (FaasError, TimeoutError) as error:
            log.error("what the engine still holds is removed at the next start: %s", error or "it does not answer")
        await self._work.cancel()
        self._endings.close()
        await self._watches.close()
        await self._scratch.close()
        left = [sandbox.group for sandbox in self._sandboxes.values() if sandbox.group]  # what the engine did not end
        await asyncio.get_running_loop().run_in_executor(self._threads, self._machine.leave_nothing, left)
        for sandbox in list(self._sandboxes.values()):
            await self._forget(sandbox)
        self._threads.shutdown(wait=False)
        self._engine.close()

    # --- images

    async def prepare(self, reference: str) -> PreparedImage:
        return await self._images.prepare(reference)

    async def collect(self, held: Collection[str]) -> int:
        """What earlier servers brought here is not known: `docker image prune` takes it."""
        for tag in self._images.forget(held):
            try:
                with self._engine.errors("remove an image"):
                    await self._engine.call(partial(self._engine.remove_image, tag))
            except Unavailable as error:
                log.info("%s stays with the engine: %s", tag, error)
        return 0

    async def _load(self, made: Archive) -> None:
        with self._engine.errors("load the image"):
            await self._engine.call(lambda: self._engine.ensure_image(made.tag, made.file))

    # --- sandboxes

    async def create(self, spec: SandboxSpec, *, ahead: bool = False, at_once: bool = False) -> Sandbox:
        if (made := self._sandboxes.get(spec.id)) is not None and (ahead or not made.waits):
            raise Conflict(f"there is a sandbox {spec.id} already")
        if spec.writable_root:
            raise NotOffered(
                "the docker driver has no writable_root: an engine cannot bound its size",
                hint="run the server with --driver oci",
            )
        if spec.terminal:
            raise NotOffered("the docker driver gives no terminal", hint="run the server with --driver oci")
        try:
            if made is not None and (given := await self._given(made, spec)) is not None:
                return given
            sandbox = self._sandboxes[spec.id] = DockerSandbox.of(spec, ahead)
            await self._work.complete(self._create(sandbox), f"the making of {spec.id}")
        except asyncio.CancelledError:
            self._work.start(self._abandon(spec.id), f"the removal of {spec.id}")
            raise
        except Exception:
            await self._abandon(spec.id)
            raise
        return sandbox

    async def _given(self, made: DockerSandbox, spec: SandboxSpec) -> DockerSandbox | None:
        """What was made ahead, where it still is what a new one would be; else it is removed."""
        made.waits = False
        if made.spec == spec and made.pause is not None and made.pause.alive() and not made.exited.done():
            with self._engine.errors("tell of the instance"):  # somebody may have removed what does not run
                if await self._engine.call(lambda: self._engine.state(made.container)):
                    return made
        await self.delete(spec.id)
        return None

    async def _abandon(self, sandbox_id: str) -> None:
        """It could not be made, or nobody waits for it any more."""
        try:
            await self.delete(sandbox_id)
        except FaasError as error:
            log.warning("it stays until the next sweep: %s", error, extra={"instance": sandbox_id})

    async def _create(self, sandbox: DockerSandbox) -> None:
        spec, engine = sandbox.spec, self._engine
        async with sandbox.lock:
            if spec.tmp_bytes:
                sandbox.scratch = await self._scratch.take(spec.tmp_bytes)
            with engine.errors("create the instance"):
                pause = await self._pauses.take(spec.network, spec.hostname, ahead=sandbox.waits)
                sandbox.pause = pause
                self._by_container[pause.container] = sandbox
                try:
                    await engine.call(lambda: self._make_container(sandbox))
                except ImageGone:
                    await self._images.bring_back(spec.image)
                    await engine.call(lambda: self._make_container(sandbox))
                self._by_container[sandbox.container] = sandbox
                try:
                    raw = await engine.call(lambda: engine.attached(sandbox.container))
                except ImageUnusable as error:
                    sandbox.broken = error
                    return
            sandbox.output = await Output.open(raw, sandbox.stdout, sandbox.stderr)

    def _make_container(self, sandbox: DockerSandbox) -> None:
        """Blocking. The function's container, not started."""
        assert sandbox.pause is not None
        wanted = function_container(
            self._engine.api,
            sandbox.spec,
            self._labels(sandbox.spec),
            pause=sandbox.pause.container,
            seccomp=self._machine.seccomp,
            tmp=sandbox.scratch.tmp if sandbox.scratch else None,
            secrets=self._machine.keep_secrets(sandbox.spec),
            cgroup_parent=self._machine.cgroup_parent,
            processes=self._engine.processes,
        )
        sandbox.container = self._engine.create(wanted)

    def _labels(self, spec: SandboxSpec) -> dict[str, str]:
        return {**spec.labels, **self._engine.labels, ID_LABEL: spec.id}

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        await self._work.complete(self._start(sandbox), f"the start of {sandbox.id}")

    async def _start(self, sandbox: DockerSandbox) -> None:
        async with sandbox.lock:
            if sandbox.state is not SandboxState.CREATED:
                raise Conflict(f"the sandbox {sandbox.id} is not merely created")
            if sandbox.broken is not None:
                raise sandbox.broken
            with self._engine.errors("start the instance"):
                process = await self._engine.call(lambda: self._run_container(sandbox))
            if sandbox.state is SandboxState.CREATED:
                sandbox.state = SandboxState.RUNNING
            group = sandbox.group

            def out_of_memory() -> bool:
                return bool(group and self._groups.oom_kills(group))

            if self._engine.podman:
                self._watches.add(sandbox.container, process, out_of_memory)
            else:
                self._watches.prove(sandbox, process, out_of_memory)

    def _run_container(self, sandbox: DockerSandbox) -> int:
        """Blocking. Its first process; 0 where it has ended."""
        process = self._engine.start(sandbox.container)
        sandbox.group = self._groups.of(process, sandbox.container)
        return process if sandbox.group else 0

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        async with sandbox.lock:  # a start that has begun comes to its end first
            if sandbox.state is SandboxState.CREATED:
                sandbox.ended(Exit(137, 9))
            if sandbox.exited.done():
                return
            with self._engine.errors("kill the instance"):
                await self._kill(sandbox)
            done, _ = await asyncio.wait([sandbox.exited], timeout=KILL_SECONDS)
            if not done:
                raise Unavailable(f"the instance {sandbox.id} does not die")

    async def _kill(self, sandbox: DockerSandbox) -> None:
        if not self._engine.podman:
            await self._engine.call(lambda: self._engine.kill(sandbox.container))
            return
        if sandbox.frozen:
            await self._engine.call(lambda: self._engine.thaw(sandbox.container))
        self._watches.kill(sandbox.container)

    async def delete(self, sandbox_id: str) -> None:
        await self._work.complete(self._delete(sandbox_id), f"the removal of {sandbox_id}")

    async def _delete(self, sandbox_id: str) -> None:
        """What the engine has not removed is still known, for whoever tries again."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            sandbox.unwanted = True
        async with sandbox.lock if sandbox else contextlib.nullcontext():
            with self._engine.errors("remove the instance"):
                await self._engine.call(lambda: self._remove(sandbox_id, sandbox))
            if sandbox is not None and self._sandboxes.get(sandbox_id) is sandbox:
                await self._forget(sandbox)

    def _remove(self, sandbox_id: str, sandbox: DockerSandbox | None) -> None:
        """Blocking. By label: a call that was not answered may have made a container whose id nobody has."""
        for container in self._engine.containers(f"{ID_LABEL}={sandbox_id}"):
            self._engine.remove(container["Id"])
        if sandbox is not None and sandbox.pause is not None:
            self._engine.remove(sandbox.pause.container)
        self._machine.forget_secrets(sandbox_id)

    async def _forget(self, sandbox: DockerSandbox) -> None:
        del self._sandboxes[sandbox.id]
        self._by_container.pop(sandbox.container, None)
        sandbox.ended(Exit(137, 9))
        sandbox.close_sockets()
        if (pause := sandbox.pause) is not None:
            sandbox.pause = None
            self._by_container.pop(pause.container, None)
            self._pauses.release(pause)
        if sandbox.scratch is not None:
            await self._scratch.discard(sandbox.scratch)

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        assert isinstance(sandbox, DockerSandbox)
        with contextlib.suppress(OSError):  # it has ended
            if self._machine.cgroup_parent and sandbox.group:
                self._groups.set_cpus(sandbox.group, cpus)
            else:  # systemd would undo what is written past it
                await self._engine.call(lambda: self._engine.set_limits(sandbox.container, cpu_limit(cpus)))

    # --- frozen ones, spare ones

    async def freeze(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        await self._work.complete(self._freeze(sandbox), f"the freezing of {sandbox.id}")

    async def _freeze(self, sandbox: DockerSandbox) -> None:
        async with sandbox.lock:
            if sandbox.state is SandboxState.RUNNING and not sandbox.frozen:
                sandbox.frozen = True  # so it may be where the engine's answer is lost
                with self._engine.errors("pause the instance"):
                    sandbox.frozen = await self._engine.call(lambda: self._engine.freeze(sandbox.container))

    async def thaw(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        await self._work.complete(self._thaw(sandbox), f"the thawing of {sandbox.id}")

    async def _thaw(self, sandbox: DockerSandbox) -> None:
        async with sandbox.lock:
            if sandbox.state is SandboxState.RUNNING and sandbox.frozen:
                with self._engine.errors("let the instance go on"):
                    await self._engine.call(lambda: self._engine.thaw(sandbox.container))
                sandbox.frozen = False

    def spare_bytes(self) -> int:
        return self._pauses.spare_bytes()

    async def drop_spares(self) -> None:
        await self._pauses.drop()

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, DockerSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        with self._engine.errors("list its containers"):
            rows = await self._engine.call(lambda: self._engine.containers(ID_LABEL))
        return sorted({*self._sandboxes, *(row["Labels"][ID_LABEL] for row in rows)})

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        assert isinstance(sandbox, DockerSandbox)
        return self._groups.stats(sandbox.group) if sandbox.group else SandboxStats(0, 0, 0, 0.0)

    # --- what the engine tells

    def _known(self) -> list[str]:
        return [*self._by_container, *self._pauses.known()]

    def _died(self, container: str, outcome: Exit) -> None:
        sandbox = self._by_container.get(container)
        if sandbox is None:
            self._pauses.died(container)
        elif container == sandbox.container:
            sandbox.ended(outcome)
        elif sandbox.state is SandboxState.CREATED:  # its network has gone
            sandbox.ended(Exit(137, 9))
        elif not sandbox.unwanted:
            log.error("somebody ended its network, so it ends", extra={"instance": sandbox.id})
            self._work.start(self.kill(sandbox), f"the end of {sandbox.id}")

    def _back(self) -> None:
        """The engine was gone: what it was asked to remove, it is asked again."""
        self._pauses.back()
        for sandbox in self._sandboxes.values():
            if sandbox.unwanted:
                self._work.start(self._abandon(sandbox.id), f"the removal of {sandbox.id}")
