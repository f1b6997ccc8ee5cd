"""Run in the guest: the server under systemd with its own unit, which delegates a cgroup to it, from start to stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import on_this_machine
from tests.support.server import RunningServer

DATA = Path("/var/lib/faas")
UNIT = Path("/etc/systemd/system/faas.service")
GROUP = Path("/sys/fs/cgroup/system.slice/faas.service")
READY_SECONDS = 120.0  # emulated
PUSH_SECONDS = 900.0  # of which most builds the runtime base

pytestmark = pytest.mark.timeout(PUSH_SECONDS + READY_SECONDS)


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=True).stdout.strip()


class UnitServer(RunningServer):
    """The same server, started and stopped by systemd."""

    def start(self) -> UnitServer:
        systemctl("start", "faas")
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.server_file.exists():
                addresses = json.loads(self.server_file.read_text())
                self.public, self.api = addresses["public"], addresses["api"]
                self.token = (self.data / "admin-token").read_text().strip()
                if self.get("/readyz", api=True).status == 200:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"not ready within {READY_SECONDS:.0f} s")

    def stop(self) -> int:
        systemctl("stop", "faas")
        return int(systemctl("show", "--value", "-p", "ExecMainStatus", "faas"))

    def instances(self) -> list[Path]:
        return sorted(path for path in (GROUP / "instances").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def server(project_root: Path) -> Iterator[UnitServer]:
    text = (project_root / "deploy/systemd/faas.service").read_text()
    UNIT.write_text(text.replace("@FAAS@", f"{sys.executable} -m faas.cli").replace("@DATA@", str(DATA)))
    (UNIT.parent / "faas.service.d").mkdir(exist_ok=True)
    (UNIT.parent / "faas.service.d/here.conf").write_text(f"[Service]\nWorkingDirectory={project_root}\n")
    systemctl("daemon-reload")
    server = UnitServer(DATA)
    yield server.start()
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def before() -> dict[str, set[str]]:
    return on_this_machine()


@pytest.fixture(scope="module", autouse=True)
def _pushed(before: dict[str, set[str]], server: UnitServer, project_root: Path) -> None:
    for name in ("hello", "hungry", "fork"):
        began = time.monotonic()
        server.faas("push", project_root / "tests/functions" / name, timeout=PUSH_SECONDS)
        print(f"pushed {name} in {time.monotonic() - began:.0f} s")


def hello(server: UnitServer) -> str:
    return server.get("/function/hello?name=v2").text


def test_hello_answers_from_crun_in_the_delegated_group(server: UnitServer) -> None:
    assert hello(server) == "Hello, v2!\n"
    assert server.get("/v1/info", api=True).json()["driver"] == "oci"
    main = systemctl("show", "--value", "-p", "MainPID", "faas")
    assert Path(f"/proc/{main}/cgroup").read_text().strip() == "0::/system.slice/faas.service/server"
    assert (GROUP / "cgroup.procs").read_text() == ""
    assert not list(Path("/sys/fs/cgroup").glob("faas*"))


def test_an_instances_limits_are_the_kernels(server: UnitServer) -> None:
    hello(server)
    limits = {
        name: (server.instances()[0] / name).read_text().strip()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    print(limits)
    assert int(limits["memory.max"]) >= 128 << 20
    assert limits["memory.swap.max"] == "0"
    assert limits["memory.oom.group"] == "1"
    assert int(limits["pids.max"]) > 0
    assert limits["cpu.max"].endswith(" 100000")
    assert not limits["cpu.max"].startswith("max")


def test_an_over_memory_function_is_said_to_be_one(server: UnitServer) -> None:
    answer = server.get("/function/hungry")
    assert (answer.status, answer.headers.get("X-Error-Type")) == (502, "Runtime.OutOfMemory"), answer.body
    assert hello(server) == "Hello, v2!\n"


def test_a_fork_bomb_stops_and_none_of_it_is_left(server: UnitServer) -> None:
    answer = server.get("/function/fork")
    assert (answer.status, answer.headers.get("X-Error-Type")) == (504, "Sandbox.Timedout"), answer.body
    assert hello(server) == "Hello, v2!\n"
    deadline = time.monotonic() + 20
    while (found := forks(server)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == 0


def forks(server: UnitServer) -> int:
    """The processes of the instance that has more than one."""
    counts = [int((group / "pids.current").read_text()) for group in server.instances() if group.exists()]
    return sum(count for count in counts if count > 4)


def test_after_kill_9_systemd_starts_it_anew_and_it_answers(server: UnitServer) -> None:
    hello(server)
    old = int(systemctl("show", "--value", "-p", "MainPID", "faas"))
    server.server_file.unlink()
    os.kill(old, 9)
    server.wait_until_ready()
    assert int(systemctl("show", "--value", "-p", "MainPID", "faas")) != old
    assert hello(server) == "Hello, v2!\n"


def test_stopping_the_unit_leaves_nothing(server: UnitServer, before: dict[str, set[str]]) -> None:
    hello(server)
    assert server.instances()
    assert server.stop() == 0
    assert systemctl("show", "--value", "-p", "Result", "faas") == "success"
    after = on_this_machine()
    assert {kind: sorted(after[kind] - before[kind]) for kind in after if after[kind] - before[kind]} == {}
    assert not GROUP.exists()
