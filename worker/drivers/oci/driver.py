"""The `oci` driver: sandboxes straight from unpacked layers through an OCI runtime program, without a daemon."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from faas.background import Background
from faas.errors import Conflict, FaasError, Unavailable
from faas.metrics import Metrics
from faas.oci.platform import architecture
from faas.oci.source import ImageSource
from worker.drivers.base import (
    DriverPaths,
    Exit,
    Lend,
    PreparedImage,
    Sandbox,
    SandboxSpec,
    SandboxState,
    freely,
)
from worker.drivers.linux.cgroups import CPU_SHARES, for_machine, starting_shares
from worker.drivers.oci import attachment, console, machine
from worker.drivers.oci import runtime as runtimes
from worker.drivers.oci.bundles import Bundles
from worker.drivers.oci.bytecode import Bytecode
from worker.drivers.oci.collection import collect
from worker.drivers.oci.process import Process, become_subreaper
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.sandbox_groups import SandboxGroups
from worker.drivers.oci.standing import Standing
from worker.drivers.oci.stems import Stems, Verbs
from worker.drivers.oci.supplies import Supplies
from worker.layers.store import LayerStore
from worker.network.egress import Egress
from worker.network.resolver import RESOLV_CONFS
from worker.network.shaping import MBIT_PER_CPU

log = logging.getLogger("worker.drivers.oci")

THREADS = 8  # starts, mounts, clean-up at once; a start is CPU, so more would only make each slower
UNPACKERS = 2  # layers unpacked at once, apart: they take seconds
HIDE_SECONDS = 0.01  # from a start until its mounts are taken away here: somebody waits for its first answer
KILL_SECONDS = 5.0
CLOSE_SECONDS = 20.0  # for the end of all sandboxes, and for each step after it: a thread may hang in the kernel
T = TypeVar("T")


class OciDriver(SandboxGroups):
    """Implements `worker.drivers.base.Driver`.

    What has begun is finished: a caller that is cancelled goes at once and leaves no half-made sandbox, no half-done
    removal. `delete` waits for what is on its way, and `close` for everything.
    """

    name = "oci"
    missing = staticmethod(machine.missing)

    def __init__(
        self,
        paths: DriverPaths,
        source: ImageSource,
        *,
        runtime: str = "",
        subnet: str = "",
        resolvers: tuple[Path, ...] = RESOLV_CONFS,
        stems: int = 0,
        user_namespaces: bool = True,
        bandwidth: int = MBIT_PER_CPU,
        metrics: Metrics | None = None,
        reads: bool = True,
    ) -> None:
        """`reads`: what sandboxes write; else it is left in their pipes, for whoever takes those."""
        self._run = run = machine.RUN / paths.server_id
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="oci")
        self._unpackers = ThreadPoolExecutor(UNPACKERS, thread_name_prefix="layers")
        self._layers = LayerStore(paths.data / "layers", run / "l", source, architecture(), self._unpackers)
        super().__init__(for_machine(paths.server_id))
        egress = Egress(paths.server_id, subnet, resolvers)
        self._supplies = Supplies(
            paths, run, self._threads, egress, bandwidth=bandwidth, user_namespaces=user_namespaces
        )
        self._bundles = Bundles(run, paths.data / "layers", self._cgroups, self._supplies, resolvers)
        self._wanted_runtime = runtime
        self._runtime: runtimes.Runtime
        self._sandboxes: dict[str, OciSandbox] = {}
        self._cores = os.cpu_count() or 1
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._work = Background()
        self._reads = reads
        self.lend: Lend = freely
        self._bytecode = Bytecode(self._layers, self._run_whole, self.delete, lambda size: self.lend(size))
        verbs = Verbs(self._layers.image, self._in_thread, self._park, self._become, self._throw_away, self.measured)
        self._stems = Stems(stems, verbs, metrics or Metrics(""))

    async def open(self) -> None:
        program = runtimes.find(self._wanted_runtime)
        reasons = self.missing(self._wanted_runtime)
        if reasons or program is None:
            raise Unavailable("the oci driver cannot run: " + "; ".join(reasons), hint="run faas doctor")
        become_subreaper()
        self._runtime = runtimes.Runtime(program, self._run / "runtime")
        try:
            await self._in_thread(lambda: self._prepare(program))
        except OSError as error:
            raise Unavailable(f"this machine cannot run sandboxes: {error}", hint="run faas doctor") from None
        await self._supplies.make_ahead()
        self._stems.open(await self._in_thread(lambda: attachment.missing(program, self._run / "probe")))

    def _prepare(self, program: str) -> None:
        """Blocking."""
        runtimes.warn_if_old(program)
        machine.prepare(self._run, self._cgroups)
        self._layers.open()
        self._bundles.open()
        self._supplies.open(program)

    async def close(self) -> None:
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self._stems.close,
            self._layers.close,
            self._end_all,
            self._supplies.namespaces.close,
            self._supplies.scratch.close,
            self._supplies.identities.close,
            lambda: self._in_thread(lambda: machine.leave_nothing(self._run, self._cgroups)),
        )
        for step in steps:  # whatever one of them meets, the others are taken
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await step()
            except Exception:
                log.exception("closing leaves something behind")
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._unpackers.shutdown(wait=False, cancel_futures=True)

    async def _end_all(self) -> None:
        ends = await asyncio.gather(*map(self.delete, list(self._sandboxes)), return_exceptions=True)
        for error in ends:
            if error is not None:
                log.error("an instance was not removed whole: %s", error)
        await self._work.finish(CLOSE_SECONDS)

    async def prepare(self, reference: str) -> PreparedImage:
        image = await self._bytecode.added(await self._layers.image(reference))
        await self._stems.know(image)
        warnings = self._supplies.identities.warnings(image.config.user)
        return PreparedImage(reference, image.config, image, stays=True, warnings=warnings)

    async def collect(self, held: Collection[str]) -> int:
        used = (sandbox.spec.image for sandbox in self._sandboxes.values())  # as they are when it comes to them
        return await collect(self._layers, self._stems, held, used)

    async def create(self, spec: SandboxSpec, *, ahead: bool = False, at_once: bool = False) -> Sandbox:
        stem = None if ahead else self.from_stem(spec, at_once=at_once)
        sandbox = stem or await self._made(spec, ahead)
        if self._reads and sandbox.unread:
            sandbox.creating = self._work.own(sandbox.read(), f"output of {spec.id}")
            try:
                await self._work.heard(sandbox.creating)
            except asyncio.CancelledError:
                self._throw_away(sandbox)
                raise
        return sandbox

    async def _made(self, spec: SandboxSpec, ahead: bool) -> OciSandbox:
        if (made := self._sandboxes.get(spec.id)) is not None and made.is_ahead and not ahead:
            if await self._claimed(made, spec):
                return made
            await self.delete(spec.id)
        if spec.id in self._sandboxes or spec.id in self._removals:
            raise Conflict(f"there is a sandbox {spec.id} already")
        if ahead:
            if self._stems.can_serve(spec):
                raise Unavailable("a stem serves it sooner")
            sandbox = self._sandbox(spec)
            sandbox.is_ahead, sandbox.path = True, "precreated"
            return await self._new(sandbox)
        return await self._new(self._sandbox(spec))

    def _sandbox(self, spec: SandboxSpec) -> OciSandbox:
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        return OciSandbox(spec, self._bundles.folder(spec.id), exited, self._cgroups.counters(spec.id))

    async def _new(self, sandbox: OciSandbox) -> OciSandbox:
        self._sandboxes[sandbox.id] = sandbox
        sandbox.creating = self._work.own(self._create(sandbox), f"creation of {sandbox.id}")
        try:
            await self._work.heard(sandbox.creating)
        except asyncio.CancelledError:
            self._throw_away(sandbox)
            raise
        except BaseException:
            await self.delete(sandbox.id)
            raise
        return sandbox

    def _throw_away(self, sandbox: OciSandbox) -> None:
        """Where nobody waits for its end."""
        self._work.unheard(self._removal(sandbox.id))

    async def _create(self, sandbox: OciSandbox) -> None:
        sandbox.shares = CPU_SHARES  # one more
        starting = sum(bool(s.shares) for s in self._sandboxes.values() if not (s.is_parked or s.is_ahead))
        sandbox.shares = starting_shares(starting, self._cores)
        self._supplies.take(sandbox)
        assert sandbox.identity is not None
        sandbox.make_pipes(sandbox.identity.on_host)
        await self._in_thread(lambda: self._bundles.furnish(sandbox))
        if sandbox.is_ahead:
            try:
                name, bundle, streams = sandbox.name, sandbox.bundle, tuple(sandbox.outputs)
                pid = await self._in_thread(lambda: self._runtime.create(name, bundle, *streams))
            finally:
                sandbox.close_outputs()
            self._watch(sandbox, pid)
            self._hide(sandbox)

    async def _claimed(self, made: OciSandbox, spec: SandboxSpec) -> bool:
        """Whether what was made ahead is what `spec` would give now; it is its instance's from here on."""
        if made.creating is not None:
            await asyncio.wait([made.creating])
        if made.spec != spec or made.process is None or made.exited.done() or not made.is_ahead:
            return False
        try:
            await self._in_thread(lambda: self._bundles.claim(made))
        except (FaasError, OSError) as error:
            log.info("what was made ahead is of no use any more: %s", error, extra={"instance": made.id})
            return False
        made.is_ahead = False
        return True

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, OciSandbox)
        if sandbox.goes_on():
            return
        if sandbox.state is not SandboxState.CREATED or sandbox.starting:
            raise Conflict(f"the sandbox {sandbox.id} is not merely created")
        sandbox.starting = self._work.own(self._start(sandbox), f"start of {sandbox.id}")
        await self._work.heard(sandbox.starting)

    async def _start(self, sandbox: OciSandbox) -> None:
        if sandbox.process is not None:  # made ahead
            with sandbox.process.held() as process:
                await self._in_thread(lambda: self._runtime.start(sandbox.name, sandbox.bundle, process))
            if sandbox.state is SandboxState.CREATED:
                sandbox.state = SandboxState.RUNNING
            return
        try:
            pid = await self._in_thread(lambda: console.run(self._runtime, sandbox))
        finally:
            sandbox.close_outputs()
        self._watch(sandbox, pid)
        sandbox.state = SandboxState.RUNNING
        self._hide(sandbox)

    def _hide(self, sandbox: OciSandbox) -> None:
        """Its mounts are its own from here on. Ours go, in the background: a runtime program copies and reads through
        all that it finds, and with those of 100 instances (300) each start took 7 ms more."""
        sandbox.hiding = self._work.start(self._hidden(sandbox, sandbox.hiding), f"mounts of {sandbox.id}")

    async def _hidden(self, sandbox: OciSandbox, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        await asyncio.sleep(HIDE_SECONDS)
        await self._in_thread(lambda: self._bundles.hide(sandbox))

    def _watch(self, sandbox: OciSandbox, pid: int) -> None:
        def ended(outcome: Exit) -> None:
            sandbox.state = SandboxState.STOPPED
            if not sandbox.exited.done():  # cancelled together with somebody who waited for it
                sandbox.exited.set_result(outcome)

        sandbox.process = Process(pid, lambda: self._cgroups.oom_kills(sandbox.name), ended)

    async def _run_whole(self, spec: SandboxSpec, seconds: float) -> OciSandbox:
        """Of our own, not an instance: run it to its end, or for so long."""
        sandbox = self._sandbox(spec)
        sandbox.is_looked_into = True
        await self._new(sandbox)
        await sandbox.read()
        await self.start(sandbox)
        await asyncio.wait((sandbox.exited,), timeout=seconds)
        await self.kill(sandbox)
        return sandbox

    # Stems

    async def _park(self, spec: SandboxSpec) -> OciSandbox:
        sandbox = self._sandbox(spec)
        sandbox.park()
        await self._new(sandbox)
        try:
            await self.start(sandbox)
        except BaseException:
            self._throw_away(sandbox)
            raise
        return sandbox

    def from_stem(self, spec: SandboxSpec, *, at_once: bool) -> OciSandbox | None:
        """As `create`, at once and in 0.3 ms: a stem that has become `spec`, where one is ready."""
        is_there = spec.id in self._sandboxes or spec.id in self._removals
        if is_there or (stem := self._stems.give(spec)) is None:
            return None
        self._sandboxes.pop(stem.id, None)
        stem.become(spec)
        self._sandboxes[spec.id] = stem
        if at_once:
            stem.begin()
        self._hide(stem)
        return stem

    def _become(self, stem: OciSandbox, spec: SandboxSpec, standing: Standing) -> None:
        assert stem.process is not None
        with stem.process.held() as process:
            self._bundles.refurnish(stem, spec, standing, process)

    def spare_bytes(self) -> int:
        return self._stems.memory_bytes

    async def drop_spares(self) -> None:
        ends = await asyncio.gather(*(self.delete(stem.id) for stem in self._stems.drop()), return_exceptions=True)
        for error in filter(None, ends):
            log.error("a stem was not removed whole: %s", error)

    # Their end

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, OciSandbox)
        if sandbox.starting:
            await asyncio.wait([sandbox.starting])
        if sandbox.process is None:
            sandbox.never_ran()
            return
        if sandbox.is_frozen:
            await self._in_thread(lambda: self.end_frozen(sandbox))
        sandbox.process.kill()
        if not await _ended(sandbox):
            await self._in_thread(lambda: self._cgroups.kill(sandbox.name))
            if not await _ended(sandbox):
                raise Unavailable(f"the instance {sandbox.id} does not die")

    async def delete(self, sandbox_id: str) -> None:
        await self._work.heard(self._removal(sandbox_id))

    def _removal(self, sandbox_id: str) -> asyncio.Task[None]:
        """The one that is on its way, or a new one."""
        task = self._removals.get(sandbox_id)
        if task is None:
            sandbox = self._sandboxes.get(sandbox_id)
            work = self._delete(sandbox) if sandbox else self._delete_stranger(sandbox_id)
            task = self._work.own(work, f"removal of {sandbox_id}")
            self._removals[sandbox_id] = task
            task.add_done_callback(lambda _: self._removals.pop(sandbox_id, None))
        return task

    async def _delete(self, sandbox: OciSandbox) -> None:
        """Whatever one step meets, the others are taken. What is left then is a stranger's."""
        if making := [task for task in (sandbox.creating, sandbox.starting, sandbox.hiding) if task]:
            await asyncio.wait(making)
        async with contextlib.AsyncExitStack() as stack:  # from the last one to the first
            stack.callback(self._sandboxes.pop, sandbox.id)
            stack.push_async_callback(self._supplies.give_back, sandbox)
            stack.push_async_callback(self._in_thread, lambda: self._remove(sandbox.name))
            stack.callback(sandbox.close_sockets)
            stack.callback(sandbox.close_outputs)
            await self.kill(sandbox)

    async def _delete_stranger(self, sandbox_id: str) -> None:
        """What the machine has of a sandbox that this driver does not hold, if anything."""
        if sandbox_id in await self.ids():
            await self._in_thread(lambda: self._remove(sandbox_id))

    def _remove(self, sandbox_id: str) -> None:
        """Blocking. All that it has on this machine. Raises Unavailable."""
        self._runtime.forget(sandbox_id)
        self._bundles.remove(sandbox_id)

    async def ids(self) -> list[str]:
        found = await self._in_thread(self._bundles.ids)
        held = {sandbox.name: sandbox for sandbox in self._sandboxes.values()}
        instances = {sandbox.id for sandbox in held.values() if not sandbox.is_parked}
        return sorted({*instances, *(set(found) - held.keys())})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


async def _ended(sandbox: OciSandbox) -> bool:
    """Whether it ended within the time that a kill may take."""
    done, _ = await asyncio.wait((sandbox.exited,), timeout=KILL_SECONDS)
    return bool(done)
