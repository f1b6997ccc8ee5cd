"""The `docker` driver: sandboxes through a Docker Engine, with the same limits and answers as the `oci` driver.

A sandbox is two containers: a *pause* container that holds the network namespace, so that the server can listen inside
before the function runs, and the function's own, which joins that namespace. The engine's calls block: they run in a
bounded pool of threads, each with a time limit. How containers end is heard from one stream of the engine's events.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from urllib3.exceptions import HTTPError

from faas.background import Background
from faas.errors import Conflict, FaasError, ImageUnusable, NotOffered, Unavailable
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
)
from worker.drivers.docker_attach import Output, attached
from worker.drivers.docker_containers import cpu_limit, function_container, pause_container
from worker.drivers.docker_events import Endings
from worker.drivers.docker_groups import container_groups
from worker.drivers.docker_image import Archive, Images, pause_image
from worker.drivers.docker_sandbox import DockerSandbox
from worker.drivers.docker_threads import Threads
from worker.drivers.oci import mounts, seccomp
from worker.drivers.oci.scratch import ScratchPool
from worker.network.firewall import BridgeFirewall

log = logging.getLogger("worker.drivers.docker")

RUN = Path("/run/faas")
THREADS = 8
CALL_SECONDS = 60.0
KILL_SECONDS = 10.0
CLOSE_SECONDS = 15.0  # for the engine to take back what is its own
LABEL, ID_LABEL = "faas.server", "faas.sandbox"
NOT_EXECUTABLE = re.compile(r"exec: |exec user process|exec format error|executable file not found|chdir to cwd")
# What a call of the SDK raises: its own errors, and those of what it is made of.
ENGINE_ERRORS = (DockerException, requests.RequestException, HTTPError, OSError)
T = TypeVar("T")


@contextlib.contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    """The SDK's errors as ours."""
    try:
        yield
    except APIError as error:
        raise Unavailable(f"the Docker Engine cannot {what}: {_said(error)}") from None
    except ENGINE_ERRORS as error:
        raise Unavailable(f"the Docker Engine does not answer: {_said(error)}", hint="is dockerd running?") from None


def _said(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error)[:500]


class DockerDriver:
    """Implements `worker.drivers.base.Driver`.

    What has begun is finished: a caller that is cancelled is let go, and what it asked for is made and then removed.
    """

    name = "docker"

    def __init__(self, paths: DriverPaths, source: ImageSource) -> None:
        self._server = paths.server_id
        self._calls = Threads(THREADS, "docker")
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="scratch")  # this machine's work alone
        self._work = Background()
        self._images = Images(source, self._load)
        run = RUN / f"{paths.server_id}-docker"
        self._run = run
        self._scratch = ScratchPool(paths.data / "scratch", run / "scratch", self._threads)
        self._groups = container_groups(paths.server_id)
        self._own_groups = False
        self._bridge = f"fd{paths.server_id}"
        self._firewall = BridgeFirewall(f"faas_{paths.server_id}_docker", self._bridge)
        self._seccomp = json.dumps(seccomp.profile())
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._by_container: dict[str, DockerSandbox] = {}
        self._endings: Endings
        self._api: Any  # docker.APIClient, which has no types for half of what is called here

    @staticmethod
    def available() -> bool:
        """Whether an engine answers here."""
        try:
            client = docker.from_env(timeout=5)
            try:
                client.ping()
            finally:
                client.close()
        except (DockerException, requests.RequestException, OSError):
            return False
        return True

    async def open(self) -> None:
        if os.geteuid() != 0:
            raise Unavailable("the docker driver listens inside the functions' networks, which needs root", hint="sudo")
        with _engine_errors("be reached"):
            self._api = await self._call(lambda: docker.from_env(timeout=int(CALL_SECONDS)).api)
            await self._call(self._prepare_machine)
        label, known = f"{LABEL}={self._server}", lambda: list(self._by_container)
        self._endings = Endings(self._api, label, known, self._died, self._back, ENGINE_ERRORS)

    def _prepare_machine(self) -> None:
        """Blocking. Remove what a crashed server left; make the network, the pause image, the folders."""
        # With systemd as the engine's cgroup manager the parent must be a slice.
        self._own_groups = self._api.info().get("CgroupDriver") == "cgroupfs"
        self._sweep()
        self._leave_nothing()
        self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch.open()
        if self._own_groups:
            self._groups.open()
        self._ensure_image(*pause_image())
        self._api.create_network(
            self._bridge,
            driver="bridge",
            labels={LABEL: self._server},
            options={
                "com.docker.network.bridge.name": self._bridge,
                "com.docker.network.bridge.enable_icc": "false",
            },
        )
        self._firewall.open()

    def _sweep(self) -> None:
        """Blocking. Containers and networks that carry this server's label."""
        for container in self._containers():
            with contextlib.suppress(APIError):
                self._api.remove_container(container["Id"], force=True, v=True)
        for row in self._api.networks(filters={"label": f"{LABEL}={self._server}"}):
            with contextlib.suppress(APIError):
                self._api.remove_network(row["Id"])
        self._firewall.close()

    def _containers(self, sandbox_id: str = "") -> list[dict[str, Any]]:
        """Blocking. The containers of this server, or of one of its sandboxes."""
        labels = [f"{LABEL}={self._server}", *([f"{ID_LABEL}={sandbox_id}"] if sandbox_id else [])]
        rows: list[dict[str, Any]] = self._api.containers(all=True, filters={"label": labels})
        return rows

    def _leave_nothing(self) -> None:
        """Blocking. Processes, groups, mounts and folders of this server, without the engine."""
        for sandbox in self._sandboxes.values():  # those that the engine did not end
            if sandbox.group:
                self._groups.kill(sandbox.group)
        if self._own_groups:
            self._groups.close()
        for point in mounts.mounted_below(self._run):
            mounts.unmount(point)
            with contextlib.suppress(OSError):
                point.rmdir()
        for folder in (self._run / "scratch", self._run, RUN):
            with contextlib.suppress(OSError):  # RUN may hold another server's
                folder.rmdir()

    async def close(self) -> None:
        """Bounded, whatever the engine does: what it has not taken back by then the next `open` removes."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._images.close()
                await self._work.finish(CLOSE_SECONDS / 2)
                await asyncio.gather(*map(self.delete, list(self._sandboxes)), return_exceptions=True)
                with _engine_errors("be cleaned up"):
                    await self._call(self._sweep)
        except (FaasError, TimeoutError) as error:
            log.error("what the engine still holds is removed at the next start: %s", error or "it does not answer")
        await self._work.cancel()
        self._endings.close()
        await self._scratch.close()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._leave_nothing)
        for sandbox in list(self._sandboxes.values()):
            await self._forget(sandbox)
        self._threads.shutdown(wait=False)
        self._calls.shutdown(wait=False)
        self._api.close()

    # --- images

    async def prepare(self, reference: str) -> PreparedImage:
        return await self._images.prepare(reference)

    async def _load(self, made: Archive) -> None:
        with _engine_errors("load the image"):
            await self._call(lambda: self._ensure_image(made.tag, made.file))

    def _ensure_image(self, tag: str, archived: bytes | IO[bytes]) -> None:
        try:
            self._api.inspect_image(tag)
        except ImageNotFound:
            for line in self._api.load_image(archived):
                if "error" in line:
                    raise ImageUnusable(f"the engine does not take the image: {line['error']}") from None

    # --- sandboxes

    async def create(self, spec: SandboxSpec) -> Sandbox:
        if spec.id in self._sandboxes:
            raise Conflict(f"there is a sandbox {spec.id} already")
        if spec.writable_root:
            raise NotOffered(
                "the docker driver has no writable_root: an engine cannot bound its size",
                hint="run the server with --driver oci",
            )
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        sandbox = DockerSandbox(spec, asyncio.StreamReader(), asyncio.StreamReader(), exited)
        self._sandboxes[spec.id] = sandbox
        try:
            await self._work.complete(self._create(sandbox), f"the making of {spec.id}")
        except asyncio.CancelledError:
            self._work.start(self._abandon(spec.id), f"the removal of {spec.id}")
            raise
        except Exception:
            await self._abandon(spec.id)
            raise
        return sandbox

    async def _abandon(self, sandbox_id: str) -> None:
        """It could not be made, or nobody waits for it any more."""
        try:
            await self.delete(sandbox_id)
        except FaasError as error:
            log.warning("it stays until the next sweep: %s", error, extra={"instance": sandbox_id})

    async def _create(self, sandbox: DockerSandbox) -> None:
        async with sandbox.lock:
            if sandbox.spec.tmp_bytes:
                sandbox.scratch = await self._scratch.take(sandbox.spec.tmp_bytes)
            with _engine_errors("create the instance"):
                await self._call(lambda: self._make_pause(sandbox))
                try:
                    await self._call(lambda: self._make_container(sandbox))
                except ImageNotFound:
                    await self._images.bring_back(sandbox.spec.image)
                    await self._call(lambda: self._make_container(sandbox))
                self._by_container[sandbox.container] = sandbox
                raw = await self._call(lambda: attached(self._api, sandbox.container))
            sandbox.output = await Output.open(raw, sandbox.stdout, sandbox.stderr)

    def _make_pause(self, sandbox: DockerSandbox) -> None:
        """Blocking. The pause container, running, and its network namespace."""
        tag, image = pause_image()
        network = self._bridge if sandbox.spec.network is Network.OUTBOUND else "none"
        wanted = pause_container(self._api, tag, sandbox.spec, network, self._labels(sandbox.spec))
        try:
            sandbox.pause = self._api.create_container(**wanted)["Id"]
        except ImageNotFound:
            self._ensure_image(tag, image)
            sandbox.pause = self._api.create_container(**wanted)["Id"]
        self._api.start(sandbox.pause)
        pid = self._api.inspect_container(sandbox.pause)["State"]["Pid"]
        sandbox.namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _make_container(self, sandbox: DockerSandbox) -> None:
        """Blocking. The function's container, not started."""
        wanted = function_container(
            self._api,
            sandbox.spec,
            self._labels(sandbox.spec),
            pause=sandbox.pause,
            seccomp=self._seccomp,
            tmp=sandbox.scratch.tmp if sandbox.scratch else None,
            cgroup_parent=self._groups.path("").rstrip("/") if self._own_groups else None,
        )
        sandbox.container = self._api.create_container(**wanted)["Id"]

    def _labels(self, spec: SandboxSpec) -> dict[str, str]:
        return {**spec.labels, LABEL: self._server, ID_LABEL: spec.id}

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        await self._work.complete(self._start(sandbox), f"the start of {sandbox.id}")

    async def _start(self, sandbox: DockerSandbox) -> None:
        async with sandbox.lock:
            if sandbox.state is not SandboxState.CREATED:
                raise Conflict(f"the sandbox {sandbox.id} is not merely created")
            with _engine_errors("start the instance"):
                await self._call(lambda: self._run_container(sandbox))
            if sandbox.state is SandboxState.CREATED:
                sandbox.state = SandboxState.RUNNING

    def _run_container(self, sandbox: DockerSandbox) -> None:
        """Blocking."""
        try:
            self._api.start(sandbox.container)
        except APIError as error:
            if NOT_EXECUTABLE.search(_said(error)):
                raise ImageUnusable(
                    f"the command cannot be executed: {_said(error)}", hint="check command and entrypoint"
                ) from None
            raise
        pid = self._api.inspect_container(sandbox.container)["State"]["Pid"]
        sandbox.group = self._groups.of(pid, sandbox.container)

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        async with sandbox.lock:  # a start that has begun comes to its end first
            if sandbox.state is SandboxState.CREATED:
                sandbox.ended(Exit(137, 9))
            if sandbox.exited.done():
                return
            with _engine_errors("kill the instance"):
                await self._call(lambda: self._kill(sandbox.container))
            done, _ = await asyncio.wait([sandbox.exited], timeout=KILL_SECONDS)
            if not done:
                raise Unavailable(f"the instance {sandbox.id} does not die")

    def _kill(self, container: str) -> None:
        try:
            self._api.kill(container, "SIGKILL")
        except APIError as error:
            if error.status_code not in (404, 409):  # it has ended
                raise

    async def delete(self, sandbox_id: str) -> None:
        await self._work.complete(self._delete(sandbox_id), f"the removal of {sandbox_id}")

    async def _delete(self, sandbox_id: str) -> None:
        """What the engine has not removed is still known, for whoever tries again."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            sandbox.unwanted = True
        async with sandbox.lock if sandbox else contextlib.nullcontext():
            with _engine_errors("remove the instance"):
                await self._call(lambda: self._remove(sandbox_id))
            if sandbox is not None and self._sandboxes.get(sandbox_id) is sandbox:
                await self._forget(sandbox)

    def _remove(self, sandbox_id: str) -> None:
        """Blocking. By label: a call that was not answered may have made a container whose id nobody has."""
        for container in self._containers(sandbox_id):
            with contextlib.suppress(NotFound):
                self._api.remove_container(container["Id"], force=True, v=True)

    async def _forget(self, sandbox: DockerSandbox) -> None:
        del self._sandboxes[sandbox.id]
        self._by_container.pop(sandbox.container, None)
        sandbox.ended(Exit(137, 9))
        sandbox.close_sockets()
        if sandbox.scratch is not None:
            await self._scratch.discard(sandbox.scratch)

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        assert isinstance(sandbox, DockerSandbox)
        with contextlib.suppress(APIError, OSError):  # it has ended
            if self._own_groups and sandbox.group:
                self._groups.set_cpus(sandbox.group, cpus)
            else:  # systemd would undo what is written past it
                await self._call(lambda: self._api.update_container(sandbox.container, **cpu_limit(cpus)))

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, DockerSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        with _engine_errors("list its containers"):
            rows = await self._call(self._containers)
        return sorted({*self._sandboxes, *(row["Labels"][ID_LABEL] for row in rows)})

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        assert isinstance(sandbox, DockerSandbox)
        return self._groups.stats(sandbox.group) if sandbox.group else SandboxStats(0, 0, 0, 0.0)

    def _died(self, container: str, outcome: Exit) -> None:
        if (sandbox := self._by_container.get(container)) is not None:
            sandbox.ended(outcome)

    def _back(self) -> None:
        """The engine was gone: what it was asked to remove, it is asked again."""
        for sandbox in self._sandboxes.values():
            if sandbox.unwanted:
                self._work.start(self._abandon(sandbox.id), f"the removal of {sandbox.id}")

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, work)
