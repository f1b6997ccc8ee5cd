"""`Engine`: a Docker Engine, or Podman's service in its place; the only door to the SDK.

Its calls block: they run in a bounded pool of threads, each with a time limit. What its SDK raises becomes
`Unavailable`, within `errors`. Methods that are not coroutines block.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.utils import kwargs_from_env
from urllib3.exceptions import HTTPError

from faas.errors import ImageUnusable, Unavailable
from worker.drivers.docker.attach import attached
from worker.drivers.docker.threads import Threads

THREADS = 8
CALL_SECONDS = 60.0
DOCKER_SOCKET, PODMAN_SOCKET = Path("/var/run/docker.sock"), Path("/run/podman/podman.sock")
TRIES = 5
LABEL = "faas.server"
NOT_EXECUTABLE = re.compile(r"exec: |exec user process|exec format error|executable file not found|chdir to cwd")
# What a call of the SDK raises: its own errors, and those of what it is made of.
ENGINE_ERRORS = (DockerException, requests.RequestException, HTTPError, OSError)
T = TypeVar("T")


class ImageGone(Exception):
    """The engine has no such image (any more)."""


class Engine:
    """What carries the label of one server is its own there."""

    def __init__(self, server_id: str) -> None:
        self.labels = {LABEL: server_id}
        self.label = f"{LABEL}={server_id}"
        self.name = "Docker Engine"
        self.podman = False
        self.cgroupfs = False  # its manager takes the parent group that it is given; systemd's would want a slice
        self.processes = 0  # of a user, that containers have to be given; 0: nothing
        self.api: Any  # docker.APIClient, which has no types for half of what is called here
        self._calls = Threads(THREADS, "docker")

    @staticmethod
    def available() -> bool:
        """Whether an engine answers here."""
        try:
            client = _client(5)
            try:
                client.ping()
            finally:
                client.close()
        except (DockerException, requests.RequestException, OSError):
            return False
        return True

    def open(self) -> None:
        self.api = _client(int(CALL_SECONDS))
        parts = self.api.version().get("Components") or ()
        self.podman = any(str(part.get("Name", "")).startswith("Podman") for part in parts)
        self.name = "Podman service" if self.podman else "Docker Engine"
        if self.podman:  # asks for a million else, which not every machine's root may give
            self.processes = _most_processes()
        about = self.api.info()
        self.cgroupfs = about.get("CgroupDriver") == "cgroupfs"
        if any("name=rootless" in option for option in about.get("SecurityOptions") or ()):
            raise Unavailable(
                f"the {self.name} is a user's own (rootless): its networks are out of the server's reach",
                hint="let DOCKER_HOST name the socket of the machine's engine",
            )

    def close(self) -> None:
        self._calls.shutdown(wait=False)
        self.api.close()

    async def call(self, work: Callable[[], T]) -> T:
        """`work` in one of the threads; `errors` goes around it."""
        return await asyncio.get_running_loop().run_in_executor(self._calls, work)

    @contextlib.contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """The SDK's errors as ours."""
        try:
            yield
        except APIError as error:
            raise Unavailable(f"the {self.name} cannot {what}: {said(error)}") from None
        except ENGINE_ERRORS as error:
            hint = "is dockerd running?"
            if "PermissionError" in repr(error) or "Permission denied" in str(error):
                hint = "run the server as root, or let DOCKER_HOST name a socket that it may open"
            raise Unavailable(f"the {self.name} does not answer: {said(error)}", hint=hint) from None

    # --- containers

    def containers(self, *labels: str) -> list[dict[str, Any]]:
        """Those of this server that carry these labels too."""
        rows: list[dict[str, Any]] = self.api.containers(all=True, filters={"label": [self.label, *labels]})
        return rows

    def create(self, wanted: dict[str, Any]) -> str:
        """Returns its id. Raises ImageGone."""
        try:
            return str(self.api.create_container(**wanted)["Id"])
        except ImageNotFound as error:
            raise ImageGone(said(error)) from None

    def start(self, container: str) -> int:
        """Returns the number of its first process; 0 where it has ended. Raises ImageUnusable."""
        with executable():
            self.api.start(container)
        return int(self.api.inspect_container(container)["State"]["Pid"])

    def attached(self, container: str) -> socket.socket:
        """Podman prepares the container here already. Raises ImageUnusable."""
        with executable():
            return attached(self.api, container)

    def kill(self, container: str) -> None:
        """At once, also where it is paused. No error where it has ended."""
        try:
            self.api.kill(container, "SIGKILL")
        except APIError:
            state = self.state(container)
            if state.get("Paused"):  # not every engine kills what is paused
                self.thaw(container)
                self.api.kill(container, "SIGKILL")
            elif state.get("Running"):
                raise

    def freeze(self, container: str) -> bool:
        """Whether it is frozen now: one that has ended is not."""
        try:
            self.api.pause(container)
        except APIError:
            state = self.state(container)
            if state.get("Running") and not state.get("Paused"):
                raise
            return bool(state.get("Paused"))
        return True

    def thaw(self, container: str) -> None:
        """No error where it is not frozen, or has ended."""
        try:
            self.api.unpause(container)
        except APIError:
            if self.state(container).get("Paused"):
                raise

    def set_limits(self, container: str, limits: dict[str, int]) -> None:
        """No error where it has ended."""
        with contextlib.suppress(APIError):
            self.api.update_container(container, **limits)

    def state(self, container: str) -> dict[str, Any]:
        """Empty where there is no such container."""
        try:
            state: dict[str, Any] = self.api.inspect_container(container)["State"]
        except APIError as error:
            if _is_absent(error):
                return {}
            raise
        return state

    def remove(self, container: str) -> None:
        """Whatever it does. No error where it is absent."""
        try:
            self.api.remove_container(container, force=True, v=True)
        except APIError as error:
            if not _is_absent(error):
                raise

    # --- images, networks, and everything

    def ensure_image(self, tag: str, archived: bytes | IO[bytes]) -> None:
        """Raises ImageUnusable."""
        try:
            self.api.inspect_image(tag)
        except ImageNotFound:
            for line in self.api.load_image(archived):
                if "error" in line:
                    raise ImageUnusable(f"the engine does not take the image: {line['error']}") from None

    def remove_image(self, tag: str) -> None:
        """Not where a container is made of it; none there is no error."""
        try:
            self.api.remove_image(tag)
        except ImageNotFound:
            pass
        except APIError as error:
            if error.status_code != requests.codes.conflict:
                raise

    def make_bridge(self, name: str) -> None:
        """A network whose bridge has this name, too."""
        options = {"com.docker.network.bridge.name": name, "com.docker.network.bridge.enable_icc": "false"}
        for tries_left in reversed(range(TRIES)):
            try:
                self.api.create_network(name, driver="bridge", labels=self.labels, options=options)
                return
            except APIError as error:  # Podman, where an interface of somebody's goes while it looks at all of them
                if not tries_left or "no such network interface" not in said(error):
                    raise

    def sweep(self) -> None:
        """Every container and network of this server."""
        for container in self.containers():
            with contextlib.suppress(APIError):
                self.remove(container["Id"])
        for row in self.api.networks(filters={"label": self.label}):
            with contextlib.suppress(APIError):
                self.api.remove_network(row["Id"])


@contextlib.contextmanager
def executable() -> Iterator[None]:
    """What only means that the command cannot be executed is the image's fault."""
    try:
        yield
    except APIError as error:
        if NOT_EXECUTABLE.search(said(error)):
            raise ImageUnusable(
                f"the command cannot be executed: {said(error)}", hint="check command and entrypoint"
            ) from None
        raise


def _client(seconds: int) -> Any:
    """Of what DOCKER_HOST names; else of Docker's own socket, or of Podman's where there is no such."""
    named = kwargs_from_env()
    if "base_url" not in named and not DOCKER_SOCKET.exists() and PODMAN_SOCKET.exists():
        named["base_url"] = f"unix://{PODMAN_SOCKET}"
    return docker.APIClient(timeout=seconds, **named)


def _is_absent(error: APIError) -> bool:
    """Podman says so in words alone, where it goes while it is being asked about."""
    return isinstance(error, NotFound) or "no such container" in said(error)


def _most_processes() -> int:
    """As many as there can be, but no more than we may have."""
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    return most if hard == resource.RLIM_INFINITY else min(most, hard)


def said(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error)[:500]
