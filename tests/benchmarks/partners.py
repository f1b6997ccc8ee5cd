"""What is compared with: a Docker Engine, by its command line and by its API, and runc alone."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError

from tests.benchmarks.client import free_port, poll
from tests.support.server import RunningServer
from worker.drivers.docker.driver import PAUSES
from worker.drivers.docker.engine import LABEL
from worker.drivers.docker.pauses import MARK
from worker.drivers.linux import seccomp

RUN_SECONDS = 60.0
PORT = 8080


def ran(*words: str) -> None:
    """Run it to its end. Raises RuntimeError with what it said where it failed."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")


class Engine:
    """Containers and images that `close` removes. Every method that runs something returns milliseconds."""

    def __init__(self) -> None:
        self.api: Any = docker.APIClient(timeout=int(RUN_SECONDS))
        self.mark = f"faas-bench-{secrets.token_hex(4)}"
        self._images: list[str] = []

    def build(self, program: Path) -> str:
        """An image of one static program. Returns its name."""
        folder = program.parent
        (folder / "Dockerfile").write_text(f'FROM scratch\nCOPY {program.name} /hello\nENTRYPOINT ["/hello"]\n')
        name = f"{self.mark}:hello"
        for line in self.api.build(path=str(folder), tag=name, rm=True, decode=True):
            if "error" in line:
                raise RuntimeError(f"docker build: {line['error']}")
        self._images.append(name)
        return name

    def pull(self, running: RunningServer, reference: str) -> str:
        """`repository@digest` out of our registry."""
        name = f"{running.registry.removeprefix('http://')}/{reference}"
        ran("docker", "pull", "-q", name)
        self._images.append(name)
        return name

    def run_to_answer(self, image: str, *command: str) -> float:
        """`docker run -d -p`, then asked until the first answer; not before the client is back, as a user would."""
        port, name = free_port(), f"{self.mark}-{secrets.token_hex(4)}"
        words = ["docker", "run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:{PORT}", *self._split(image, command)]
        try:
            began = time.perf_counter()
            ran(*words)
            poll(("127.0.0.1", port))
            return (time.perf_counter() - began) * 1000
        finally:
            self._remove(name)

    def run_to_exit(self, image: str) -> float:
        """`docker run --rm` of a program that only exits, without a network: the least that Docker can do."""
        words = ["docker", "run", "--rm", "--network", "none", "--name", f"{self.mark}-exit", image, "exit"]
        began = time.perf_counter()
        ran(*words)
        return (time.perf_counter() - began) * 1000

    def start_to_answer(self, image: str) -> float:
        """The API's create and start on the default bridge, no port published, to the container's first answer."""
        name = f"{self.mark}-{secrets.token_hex(4)}"
        try:
            began = time.perf_counter()
            made = self.api.create_container(image, name=name)["Id"]
            self.api.start(made)
            networks = self.api.inspect_container(made)["NetworkSettings"]["Networks"]
            poll((networks["bridge"]["IPAddress"], PORT))
            return (time.perf_counter() - began) * 1000
        finally:
            self._remove(name)

    def rested(self, server_id: str) -> None:
        """Wait until that server's docker driver has containers ready, and nothing but them."""
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            rows = self.api.containers(all=True, filters={"label": f"{LABEL}={server_id}"})
            if len(rows) == PAUSES and all(row["State"] == "running" and MARK in row["Labels"] for row in rows):
                return
            if time.monotonic() > deadline:
                raise RuntimeError("the docker driver has no containers ready")
            time.sleep(0.05)

    @staticmethod
    def _split(image: str, command: tuple[str, ...]) -> list[str]:
        """With a command the image's entry point is replaced by its first word."""
        return ["--entrypoint", command[0], image, *command[1:]] if command else [image]

    def _remove(self, name: str) -> None:
        with contextlib.suppress(APIError):
            self.api.remove_container(name, force=True, v=True)

    def close(self) -> None:
        for row in self.api.containers(all=True, filters={"name": self.mark}):
            self._remove(row["Id"])
        for image in self.api.images():  # those of the docker driver too: their function has our mark in its name
            for name in image["RepoTags"] or ():
                if self.mark in name:
                    self._images.append(name)
        for name in dict.fromkeys(self._images):
            with contextlib.suppress(APIError):
                self.api.remove_image(name, force=True)
        self.api.close()


class Runc:
    """`runc run` of the same program, which only exits, with our seccomp list: the floor of every OCI runtime."""

    def __init__(self, work: Path, program: Path) -> None:
        self._bundle = work / "bundle"
        root = self._bundle / "rootfs"
        for name in ("proc", "dev", "sys"):
            (root / name).mkdir(parents=True)
        (root / "hello").write_bytes(program.read_bytes())
        (root / "hello").chmod(0o755)
        self._state = work / "runc"
        ran("runc", "spec", "--bundle", str(self._bundle))
        file = self._bundle / "config.json"
        config = json.loads(file.read_text())
        config["process"] |= {"terminal": False, "args": ["/hello", "exit"]}
        config["linux"]["seccomp"] = seccomp.profile()
        file.write_text(json.dumps(config))

    def run_to_exit(self) -> float:
        words = ["runc", "--root", str(self._state), "run", "--bundle", str(self._bundle), secrets.token_hex(6)]
        began = time.perf_counter()
        ran(*words)
        return (time.perf_counter() - began) * 1000
