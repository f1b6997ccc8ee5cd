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
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from urllib3.exceptions import HTTPError

from faas.errors import Conflict, FaasError, ImageUnusable, Unavailable
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
from worker.drivers.docker_attach import Output, attached
from worker.drivers.docker_image import archive, pause_image
from worker.drivers.docker_sandbox import DockerSandbox
from worker.drivers.oci import seccomp
from worker.drivers.oci.cgroups import PERIOD_MICROSECONDS, for_machine, quota
from worker.drivers.oci.scratch import ScratchPool
from worker.network.firewall import BridgeFirewall

log = logging.getLogger("worker.drivers.docker")

RUN = Path("/run/faas")
THREADS = 8
CALL_SECONDS = 60.0
KILL_SECONDS = 10.0
LABEL, ID_LABEL = "faas.server", "faas.sandbox"
PAUSE_MEMORY = 8 << 20  # the engine's least is 6 MiB
SHM_BYTES = 1 << 20
_NO_LOG = docker.types.LogConfig(type="none", config={})
T = TypeVar("T")


@contextlib.contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    """The SDK's errors as ours."""
    try:
        yield
    except (APIError, DockerException) as error:
        said = str(getattr(error, "explanation", None) or error)[:500]
        if "exec" in said or "executable file not found" in said or "no such file or directory" in said:
            raise ImageUnusable(
                f"the command cannot be executed: {said}", hint="check command and entrypoint"
            ) from None
        raise Unavailable(f"the Docker Engine cannot {what}: {said}") from None
    except (requests.RequestException, OSError) as error:
        raise Unavailable(f"the Docker Engine does not answer: {error}", hint="is dockerd running?") from None


class DockerDriver:
    """Implements `worker.drivers.base.Driver`."""

    name = "docker"

    def __init__(self, paths: DriverPaths, source: ImageSource) -> None:
        self._server = paths.server_id
        self._source = source
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        run = RUN / f"{paths.server_id}-docker"
        self._run = run
        self._scratch = ScratchPool(paths.data / "scratch", run / "scratch", self._threads)
        self._cgroups = for_machine(paths.server_id)
        self._bridge = f"fd{paths.server_id}"
        self._firewall = BridgeFirewall(f"faas_{paths.server_id}_docker", self._bridge)
        self._seccomp = json.dumps(seccomp.profile())
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._by_container: dict[str, DockerSandbox] = {}
        self._preparing: dict[str, asyncio.Lock] = {}
        self._prepared: dict[str, PreparedImage] = {}
        self._stopping = threading.Event()
        self._events: Any = None
        self._listener: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
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
        self._loop = asyncio.get_running_loop()
        with _engine_errors("be reached"):
            self._api = await self._in_thread(lambda: docker.from_env(timeout=int(CALL_SECONDS)).api)
            await self._in_thread(self._prepare_machine)
        self._listener = threading.Thread(target=self._listen, name="docker events", daemon=True)
        self._listener.start()

    def _prepare_machine(self) -> None:
        """Blocking. Remove what a crashed server left; make the network, the pause image, the folders."""
        self._sweep()
        self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch.open()
        info = self._api.info()
        # With systemd as the engine's cgroup manager the parent must be a slice.
        self._own_groups = info.get("CgroupDriver") == "cgroupfs"
        if self._own_groups:
            self._cgroups.open()
        tag, image = pause_image()
        self._ensure_image(tag, image)
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
        label = f"{LABEL}={self._server}"
        for row in self._api.containers(all=True, filters={"label": label}):
            with contextlib.suppress(APIError):
                self._api.remove_container(row["Id"], force=True, v=True)
        for row in self._api.networks(filters={"label": label}):
            with contextlib.suppress(APIError):
                self._api.remove_network(row["Id"])
        self._firewall.close()

    async def close(self) -> None:
        await asyncio.gather(*(self.delete(sandbox_id) for sandbox_id in list(self._sandboxes)))
        self._stopping.set()
        if self._events is not None:
            self._events.close()
        await self._scratch.close()
        with _engine_errors("be cleaned up"):
            await self._in_thread(self._sweep)
        if self._listener is not None:
            await self._in_thread(lambda: self._listener.join(5))  # type: ignore[union-attr]
        await self._in_thread(self._leave_nothing)
        self._api.close()
        self._threads.shutdown(wait=False)

    def _leave_nothing(self) -> None:
        for folder in (self._run / "scratch", self._run, RUN):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if self._own_groups:
            self._cgroups.close()

    # --- images

    async def prepare(self, reference: str) -> PreparedImage:
        async with self._preparing.setdefault(reference, asyncio.Lock()):
            if reference not in self._prepared:
                self._prepared[reference] = await self._load(reference)
        return self._prepared[reference]

    async def _load(self, reference: str) -> PreparedImage:
        """Into the engine, unless it has it: as an archive, so that it needs no address or password of ours."""
        made = await archive(self._source, reference, architecture())

        try:
            with _engine_errors("load the image"), made.open() as file:
                await self._in_thread(lambda: self._ensure_image(made.tag, file))
        finally:
            made.discard()
        return PreparedImage(reference, made.config, made.tag)

    def _ensure_image(self, tag: str, archived: bytes | BinaryIO) -> None:
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
            raise Unavailable(
                "the docker driver cannot bound a writable root", hint="use --driver oci, or write to /tmp"
            )
        loop = asyncio.get_running_loop()
        sandbox = DockerSandbox(spec, asyncio.StreamReader(), asyncio.StreamReader(), loop.create_future())
        self._sandboxes[spec.id] = sandbox
        try:
            if spec.tmp_bytes:
                sandbox.scratch = await self._scratch.take(spec.tmp_bytes)
            with _engine_errors("create the instance"):
                await self._in_thread(lambda: self._create(sandbox))
                self._by_container[sandbox.container] = sandbox
                raw = await self._in_thread(lambda: attached(self._api, sandbox.container))
            sandbox.output = await Output.open(raw, sandbox.stdout, sandbox.stderr)
        except BaseException:
            await self.delete(spec.id)
            raise
        return sandbox

    def _create(self, sandbox: DockerSandbox) -> None:
        """Blocking. The pause container, running, and the function's, created."""
        spec, api = sandbox.spec, self._api
        labels = {**spec.labels, LABEL: self._server, ID_LABEL: spec.id}
        tag, _ = pause_image()
        network = self._bridge if spec.network is Network.OUTBOUND else "none"
        host = api.create_host_config(
            network_mode=network,
            mem_limit=PAUSE_MEMORY,
            memswap_limit=PAUSE_MEMORY,
            pids_limit=4,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            read_only=True,
            log_config=_NO_LOG,
            sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
        )
        made = api.create_container(tag, user="65534:65534", hostname=spec.hostname, labels=labels, host_config=host)
        sandbox.pause = made["Id"]
        api.start(sandbox.pause)
        pid = api.inspect_container(sandbox.pause)["State"]["Pid"]
        sandbox.namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        uid, gid = spec.user
        made = api.create_container(
            str(spec.image.handle),
            entrypoint=list(spec.args[:1]),
            command=list(spec.args[1:]),
            environment=dict(spec.env),
            working_dir=spec.workdir or "/",
            user=f"{uid}:{gid}",
            labels=labels,
            host_config=self._limits(sandbox),
        )
        sandbox.container = made["Id"]

    def _limits(self, sandbox: DockerSandbox) -> dict[str, Any]:
        spec = sandbox.spec
        limits: dict[str, Any] = self._api.create_host_config(
            network_mode=f"container:{sandbox.pause}",
            mem_limit=spec.memory_bytes,
            memswap_limit=spec.memory_bytes,
            cpu_period=PERIOD_MICROSECONDS,
            cpu_quota=quota(spec.cpus),
            pids_limit=spec.pids,
            shm_size=SHM_BYTES,
            ulimits=[
                docker.types.Ulimit(name="nofile", soft=spec.open_files, hard=spec.open_files),
                docker.types.Ulimit(name="core", soft=0, hard=0),
            ],
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true", f"seccomp={self._seccomp}"],
            read_only=True,
            log_config=_NO_LOG,
            binds={str(sandbox.scratch.tmp): {"bind": "/tmp", "mode": "rw"}} if sandbox.scratch else None,  # noqa: S108
            restart_policy={"Name": "no"},
            cgroup_parent=self._cgroups.path("").rstrip("/") if self._own_groups else None,
        )
        return limits

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        with _engine_errors("start the instance"):
            await self._in_thread(lambda: self._api.start(sandbox.container))
        if sandbox.state is SandboxState.CREATED:
            sandbox.state = SandboxState.RUNNING

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, DockerSandbox)
        if sandbox.state is SandboxState.CREATED:
            self._ended(sandbox, Exit(137, 9))
            return

        def work() -> None:
            with contextlib.suppress(NotFound, APIError):  # it has ended
                self._api.kill(sandbox.container, "SIGKILL")

        with _engine_errors("kill the instance"):
            await self._in_thread(work)
        async with asyncio.timeout(KILL_SECONDS):
            await asyncio.shield(sandbox.exited)

    async def delete(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return

        def work() -> None:
            for container in filter(None, (sandbox.container, sandbox.pause)):
                with contextlib.suppress(NotFound):
                    self._api.remove_container(container, force=True, v=True)

        try:
            with _engine_errors("remove the instance"):
                await self._in_thread(work)
        finally:
            self._by_container.pop(sandbox.container, None)
            self._ended(sandbox, Exit(137, 9))
            sandbox.close_sockets()
            if sandbox.scratch is not None:
                await self._scratch.discard(sandbox.scratch)

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        assert isinstance(sandbox, DockerSandbox)
        limits = {"cpu_period": PERIOD_MICROSECONDS, "cpu_quota": quota(cpus)}
        with contextlib.suppress(APIError, OSError):  # it has ended
            if self._own_groups:
                self._cgroups.set_cpus(sandbox.container, cpus)
            else:
                await self._in_thread(lambda: self._api.update_container(sandbox.container, **limits))

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, DockerSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        with _engine_errors("list its containers"):
            rows = await self._in_thread(
                lambda: self._api.containers(all=True, filters={"label": f"{LABEL}={self._server}"})
            )
        return sorted({row["Labels"][ID_LABEL] for row in rows})

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        assert isinstance(sandbox, DockerSandbox)
        return self._cgroups.stats(sandbox.container)

    # --- events

    def _listen(self) -> None:
        """A thread of its own: `die` events, until closed; after an engine's restart, once more."""
        filters = {"type": "container", "event": "die", "label": f"{LABEL}={self._server}"}
        while not self._stopping.is_set():
            try:
                self._events = self._api.events(filters=filters, decode=True)
                for event in self._events:
                    self._died(event["Actor"]["ID"], int(event["Actor"]["Attributes"].get("exitCode", -1)))
            except (DockerException, requests.RequestException, HTTPError, OSError, ValueError) as error:
                if not self._stopping.is_set():
                    log.warning("the engine's events broke off: %s", error)
            if self._stopping.wait(0.5):
                return
            self._look_again()

    def _look_again(self) -> None:
        """Blocking. What ended while nobody listened."""
        for container in list(self._by_container):
            with contextlib.suppress(FaasError, DockerException, requests.RequestException):
                state = self._api.inspect_container(container)["State"]
                if state["Status"] in ("exited", "dead"):
                    self._died(container, state["ExitCode"])

    def _died(self, container: str, code: int) -> None:
        sandbox = self._by_container.get(container)
        if sandbox is None:
            return
        killed = False
        with contextlib.suppress(DockerException, requests.RequestException):
            killed = bool(self._api.inspect_container(container)["State"].get("OOMKilled"))
        number = code - 128 if 128 < code < 193 else 0
        outcome = Exit(code, number, killed and code != 0)
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._ended, sandbox, outcome)

    @staticmethod
    def _ended(sandbox: DockerSandbox, outcome: Exit) -> None:
        sandbox.state = SandboxState.STOPPED
        if not sandbox.exited.done():
            sandbox.exited.set_result(outcome)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
