"""Run in the guest: the server under systemd with its own unit, which delegates a cgroup to it, from start to stop.

It has the account `faas`, as `deploy/up` makes it; the launcher is root, and what is delegated is the launcher's.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import on_this_machine
from tests.support.server import RunningServer
from worker.drivers.oci.identities import FIRST

DATA = Path("/var/lib/faas")
UNIT = Path("/etc/systemd/system/faas.service")
GROUP = Path("/sys/fs/cgroup/system.slice/faas.service")
READY_SECONDS = 120.0  # emulated
PUSH_SECONDS = 900.0  # of which most builds the runtime base
SOON_SECONDS = 120.0
HUNGRY_SECONDS = 300
ACCOUNT = "faas"
LEAST_WEIGHT = 1  # of what is kept ready for nobody yet

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
        """Groups of what serves: stems and what was made ahead are none."""
        found = []
        for path in groups():
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                if number(path, "cpu.weight") > LEAST_WEIGHT:
                    found.append(path)
        return found

    def metric(self, row: str) -> float:
        lines = self.get("/metrics", api=True).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(row))

    @property
    def main(self) -> int:
        return int(systemctl("show", "--value", "-p", "MainPID", "faas"))


def number(group: Path, name: str) -> int:
    return int((group / name).read_text())


def groups() -> list[Path]:
    """Of all sandboxes."""
    return sorted(path for path in (GROUP / "instances").iterdir() if path.is_dir())


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def processes(group: Path) -> list[int]:
    return [int(process) for process in (group / "cgroup.procs").read_text().split()]


def status(process: int) -> dict[str, str]:
    rows = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


def launcher() -> int:
    found = processes(GROUP / "server")
    (only,) = [p for p in found if b"worker.launcher" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return only


@pytest.fixture(scope="module")
def server(project_root: Path) -> Iterator[UnitServer]:
    if subprocess.run(["getent", "passwd", ACCOUNT], capture_output=True).returncode:
        subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", ACCOUNT], check=True)
    text = (project_root / "deploy/systemd/faas.service").read_text()
    UNIT.write_text(text.replace("@SERVE@", f"{sys.executable} -m faas.cli serve").replace("@DATA@", str(DATA)))
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
def _pushed(before: dict[str, set[str]], server: UnitServer, project_root: Path, tmp_path_factory) -> None:
    functions = tmp_path_factory.mktemp("functions")
    for name in ("hello", "hungry", "fork"):
        folder = shutil.copytree(project_root / "tests/functions" / name, functions / name)
        if name == "hungry":  # its share of an emulated CPU needs more than 30 s to fill 128 MB
            with open(folder / "faas.toml", "a") as settings:
                settings.write(f"timeout = {HUNGRY_SECONDS}\n")
        began = time.monotonic()
        server.faas("push", folder, timeout=PUSH_SECONDS)
        print(f"pushed {name} in {time.monotonic() - began:.0f} s")


def hello(server: UnitServer) -> str:
    return server.get("/function/hello?name=v2").text


def test_hello_answers_from_crun_in_the_delegated_group(server: UnitServer) -> None:
    assert hello(server) == "Hello, v2!\n"
    assert server.get("/v1/info", api=True).json()["driver"] == "oci"
    assert Path(f"/proc/{server.main}/cgroup").read_text().strip() == "0::/system.slice/faas.service/server"
    assert (GROUP / "cgroup.procs").read_text() == ""
    assert not Path("/sys/fs/cgroup/faas", server.id).exists()


def test_the_server_is_the_accounts_and_the_launcher_beside_it_roots(server: UnitServer) -> None:
    account = pwd.getpwnam(ACCOUNT)
    who = status(server.main)
    assert set(who["Uid"].split()) == {str(account.pw_uid)}
    assert set(who["Gid"].split()) == {str(account.pw_gid)}
    assert {who[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}
    assert status(launcher())["Uid"].split()[0] == "0"
    assert {GROUP.stat().st_uid, (GROUP / "instances").stat().st_uid, (GROUP / "server").stat().st_uid} == {0}


def ready(server: UnitServer) -> list[Path]:
    """Those that serve, once none of them starts any more: then their share of the CPU is whole."""
    eventually(lambda: bool(found := server.instances()) and all(number(g, "cpu.weight") == 100 for g in found))
    return server.instances()


def limits_hold(group: Path) -> None:
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cpu.weight")
    limits = {name: (group / name).read_text().strip() for name in names}
    print(limits)
    assert int(limits["memory.max"]) >= 128 << 20
    assert limits["memory.swap.max"] == "0"
    assert limits["memory.oom.group"] == "1"
    assert int(limits["pids.max"]) > 0
    assert limits["cpu.max"].endswith(" 100000")
    assert not limits["cpu.max"].startswith("max")


def test_an_instances_limits_are_the_kernels(server: UnitServer) -> None:
    hello(server)
    for group in ready(server):
        limits_hold(group)


def test_what_starts_from_a_stem_has_its_functions_limits(server: UnitServer) -> None:
    """crun hands the stem its socket as descriptor 3; limits and code come while it runs."""
    eventually(lambda: server.metric("faas_stems{") >= 1)
    before = server.metric('faas_cold_starts_total{function="hello",path="stem"}')
    for group in server.instances():
        (group / "cgroup.kill").write_text("1")
    eventually(lambda: hello(server) == "Hello, v2!\n")
    assert server.metric('faas_cold_starts_total{function="hello",path="stem"}') == before + 1
    assert server.metric("faas_stem_failures_total") == 0
    for group in ready(server):
        limits_hold(group)


def test_between_invocations_its_group_is_frozen(server: UnitServer) -> None:
    for _ in range(3):
        assert hello(server) == "Hello, v2!\n"
        found = ready(server)
        eventually(lambda found=found: all(map(is_frozen, found)))  # type: ignore[misc]
    used = [(group / "cpu.stat").read_text().splitlines()[0] for group in found]
    time.sleep(2)
    assert [(group / "cpu.stat").read_text().splitlines()[0] for group in found] == used


def is_frozen(group: Path) -> bool:
    return "frozen 1" in (group / "cgroup.events").read_text()


def test_an_instances_users_are_nobody_elses(server: UnitServer) -> None:
    hello(server)
    own = Path("/proc/self/ns/user").readlink()
    for group in groups():  # stems too
        for process in processes(group):
            assert int(status(process)["Uid"].split()[0]) >= FIRST
            assert Path(f"/proc/{process}/ns/user").readlink() != own
            first = Path(f"/proc/{process}/uid_map").read_text().split()
            assert (first[0], int(first[1]) >= FIRST, first[2]) == ("0", True, "65535")


def test_an_over_memory_function_is_said_to_be_one(server: UnitServer) -> None:
    answer = server.get("/function/hungry", timeout=HUNGRY_SECONDS + SOON_SECONDS)
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
    old = server.main
    server.server_file.unlink()
    os.kill(old, 9)
    server.wait_until_ready()
    assert server.main != old
    assert hello(server) == "Hello, v2!\n"


def test_after_a_kill_of_the_whole_unit_nothing_of_it_is_left(server: UnitServer) -> None:
    """Server, launcher and all instances at once, frozen ones too."""
    hello(server)
    before = groups()
    old = {process for group in before for process in processes(group)} | {server.main, launcher()}
    server.server_file.unlink()
    systemctl("kill", "--kill-who=all", "-s", "KILL", "faas")
    server.wait_until_ready()
    assert not old & {server.main, launcher()}
    assert [group for group in before if group.exists()] == []
    assert [process for process in old if Path(f"/proc/{process}").exists()] == []
    assert hello(server) == "Hello, v2!\n"


def test_after_the_launchers_end_systemd_starts_both_anew(server: UnitServer) -> None:
    old = launcher()
    server.server_file.unlink()
    os.kill(old, 9)
    server.wait_until_ready()
    assert launcher() != old
    assert hello(server) == "Hello, v2!\n"


def test_stopping_the_unit_leaves_nothing(server: UnitServer, before: dict[str, set[str]]) -> None:
    hello(server)
    assert server.instances()
    assert server.stop() == 0
    assert systemctl("show", "--value", "-p", "Result", "faas") == "success"
    after = on_this_machine()
    left = {kind: [row for row in after[kind] - before[kind] if server.id in row or str(DATA) in row] for kind in after}
    assert {kind: rows for kind, rows in left.items() if rows} == {}
    assert not GROUP.exists()
