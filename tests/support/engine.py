"""A Docker Engine of the tests' own: with folders and a socket of its own, it can be stopped, frozen and emptied."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import docker

from worker.drivers.linux import mounts


class Engine:
    """A dockerd that shares nothing with the machine's own: no firewall rule, no default bridge."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes]
        self.host = f"unix://{folder / 'sock'}"

    def start(self) -> None:
        places = [f"--{name}={self._folder / place}" for name, place in (("data-root", "data"), ("exec-root", "exec"))]
        quiet = ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--shutdown-timeout=1"]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", *places, f"--pidfile={self._folder / 'pid'}", "-H", self.host, *quiet],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while not self._listens():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "dockerd does not listen"
            time.sleep(0.05)
        with self.api() as api:
            api.ping()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(str(self._folder / "sock")) == 0

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.thaw()
        self.stop()
        for point in mounts.mounted_below(self._folder):
            mounts.unmount(point)
        shutil.rmtree(self._folder, ignore_errors=True)

    def api(self) -> docker.APIClient:
        return docker.APIClient(self.host, timeout=20)

    def of(self, server_id: str) -> list[str]:
        """What carries a server's label."""
        wanted = {"label": f"faas.server={server_id}"}
        with self.api() as api:
            found = [row["Names"][0] for row in api.containers(all=True, filters=wanted)]
            return found + [row["Name"] for row in api.networks(filters=wanted)]

    def instances(self, server_id: str) -> int:
        """Containers of functions, that run or not."""
        with self.api() as api:
            return len(api.containers(all=True, filters={"label": [f"faas.server={server_id}", "faas.sandbox"]}))

    def pauses(self, server_id: str) -> list[str]:
        """Ids of those that hold a network, in use or not."""
        with self.api() as api:
            rows = api.containers(all=True, filters={"label": [f"faas.server={server_id}", "faas.pause"]})
            return sorted(row["Id"] for row in rows)

    def states(self, server_id: str) -> set[str]:
        with self.api() as api:
            rows = api.containers(all=True, filters={"label": f"faas.server={server_id}"})
            return {row["State"] for row in rows}
