"""Only the launcher is root: what the server is in the kernel's eyes, what it can reach, and what its end leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.leftovers import none_left, on_this_machine
from tests.support.processes import children
from tests.support.server import RunningServer
from worker.launcher.privileges import account

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(180)]

HELLO = "def handler(event, context):\n    return {'statusCode': 200, 'body': 'hello'}\n"
GONE_SECONDS = 30.0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "data", "--driver", "oci", whole=True)
    with none_left(server.id, str(server.data)):
        server.start()
        try:
            yield server
        finally:
            server.stop()


def status(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


def launcher_of(server: RunningServer) -> int:
    (pid,) = children(server.pid, "worker.launcher")
    return pid


def as_the_server(server: RunningServer, script: str) -> subprocess.CompletedProcess[str]:
    """What the server could do if it were taken over: its account, in its mount namespace."""
    who = status(server.pid)
    command = ["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", "--setgid", who["Gid"].split()[0]]
    command += ["--setuid", who["Uid"].split()[0], "/bin/sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def wait_for_the_end_of(pid: int) -> None:
    deadline = time.monotonic() + GONE_SECONDS
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone, and buried
        while status(pid)["State"][0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.02)


def sandboxed(server: RunningServer) -> list[str]:
    return [row for row in on_this_machine()["sandboxed processes"] if server.id in row]


def test_the_server_is_nobody_with_no_capability_and_cannot_become_more(server: RunningServer) -> None:
    wanted = account("")
    assert wanted is not None
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        who = status(int(task.name))
        assert set(who["Uid"].split()) == {str(wanted.uid)}
        assert set(who["Gid"].split()) == {str(wanted.gid)}
        assert who["Groups"] == ""
        assert {who[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert who["NoNewPrivs"] == "1"
    assert status(launcher_of(server))["Uid"].split()[0] == "0"
    assert [pid for pid in children(server.pid) if status(pid)["Uid"].split()[0] == "0"] == [launcher_of(server)]


def test_it_reaches_its_own_files_and_neither_layers_nor_the_hosts_nor_anybody_elses(
    server: RunningServer, folder: Path
) -> None:
    server.push_code(folder, "reach", HELLO)
    assert list((server.data / "layers").iterdir())
    secret = folder / "secret"
    secret.write_text("somebody's")
    secret.chmod(0o600)
    data = server.data
    allowed = as_the_server(server, f"cat {data}/admin-token && ls {data}/blobs && touch {data}/x && rm {data}/x")
    assert allowed.returncode == 0, allowed.stderr
    assert server.token in allowed.stdout
    for attempt in (
        f"ls {data}/layers",
        f"ls {data}/scratch",
        f"mv {data}/layers {data}/elsewhere",
        f"rmdir {data}/scratch",
        f"rm -f {data}/lock",
        f"chmod 777 {data}",
        f"cat {secret}",
        "cat /etc/shadow",
        "ls /root/.ssh /root/.bashrc",
        "ls /run/faas/*/bundles",
        f"cat /proc/{launcher_of(server)}/environ",
        f"ls -l /proc/{launcher_of(server)}/fd/",
        f"cat /proc/{server.pid}/environ",
        f"kill -9 {launcher_of(server)}",
        "mount -t tmpfs none /mnt",
        "nft list tables",
    ):
        done = as_the_server(server, attempt)
        assert done.returncode != 0, (attempt, done.stdout)
        assert server.get("/function/reach").text == "hello"


def test_settings_that_the_server_could_have_written_are_refused(own: RunningServer) -> None:
    """They say what root does at the next start."""
    planted = f"printf 'oci_runtime = \"/tmp/evil\"\\n' > {own.data}/config.toml"
    assert as_the_server(own, planted).returncode == 0
    assert own.stop() == 0
    with pytest.raises(RuntimeError, match="is not root's"):
        own.start()
    (own.data / "config.toml").unlink()
    own.start()


def test_a_start_that_fails_ends_the_launcher_too(own: RunningServer) -> None:
    assert own.stop() == 0
    (own.data / "layers").chmod(0o777)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="must be root's alone"):
        own.start()
    assert time.monotonic() - began < GONE_SECONDS  # it does not wait for what is waiting for it
    assert not [row for row in on_this_machine()["launchers"] if own.id in row]
    (own.data / "layers").chmod(0o700)
    own.start()


def test_kill_9_of_the_server_leaves_nothing_even_before_the_next_start(own: RunningServer, tmp_path: Path) -> None:
    own.push_code(tmp_path, "hello", HELLO)
    assert own.get("/function/hello").text == "hello"
    launcher = launcher_of(own)
    assert sandboxed(own)
    own.kill()
    wait_for_the_end_of(launcher)
    assert sandboxed(own) == []
    own.start()
    assert own.get("/function/hello").text == "hello"


def test_kill_9_of_the_launcher_ends_the_server_and_the_next_start_leaves_nothing(
    own: RunningServer, tmp_path: Path
) -> None:
    own.push_code(tmp_path, "hello", HELLO)
    assert own.get("/function/hello").text == "hello"
    os.kill(launcher_of(own), signal.SIGKILL)
    assert own.process is not None
    assert own.process.wait(GONE_SECONDS) == 1
    assert "the launcher is lost" in own.log_tail()
    assert any(own.id in row for row in on_this_machine()["mounts"])  # as after any crash
    own.start()
    assert own.get("/function/hello").text == "hello"


def test_a_signal_to_all_processes_of_the_server_ends_it_in_good_order(own: RunningServer, tmp_path: Path) -> None:
    own.push_code(tmp_path, "hello", HELLO)
    assert own.get("/function/hello").text == "hello"
    for pid in (launcher_of(own), own.pid):
        os.kill(pid, signal.SIGTERM)
    assert own.process is not None
    assert own.process.wait(GONE_SECONDS) == 0
    assert "lost" not in own.log_tail()
    assert sandboxed(own) == []


def test_a_server_that_keeps_root_waits_for_the_end_of_the_launcher_before_it(tmp_path: Path) -> None:
    """Else that one would take away what has the same name: the folder in /run, groups, the firewall's table."""
    data = tmp_path / "data"
    before, after = RunningServer(data, "--driver", "oci"), RunningServer(data, "--driver", "oci", "--user", "root")
    before.start()
    before.push_code(tmp_path, "hello", HELLO)
    launcher = launcher_of(before)
    os.kill(launcher, signal.SIGSTOP)
    before.kill()
    with ThreadPoolExecutor(1) as threads:
        starting = threads.submit(after.start)
        try:
            deadline = time.monotonic() + GONE_SECONDS
            while "waiting for the end of the launcher" not in after.log_tail():
                assert not starting.done()
                assert time.monotonic() < deadline, after.log_tail()
                time.sleep(0.01)
        finally:
            os.kill(launcher, signal.SIGCONT)
        starting.result()
    try:
        wait_for_the_end_of(launcher)
        assert after.get("/function/hello").text == "hello"
    finally:
        after.stop()


def test_root_may_be_kept_and_given_up_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with RunningServer(data, "--driver", "oci", "--user", "root") as server:
        assert status(server.pid)["Uid"].split()[0] == "0"
        assert "keeps root" in server.log_tail()
        server.push_code(tmp_path, "hello", HELLO)
        assert (data.stat().st_uid, data.stat().st_gid) == (0, 0)
    with RunningServer(data, "--driver", "oci", "--user", "60911") as server:
        assert status(server.pid)["Uid"].split()[0] == "60911"
        assert server.get("/function/hello").text == "hello"
        assert (data / "faas.db").stat().st_uid == 60911
        assert (data / "layers").stat().st_uid == 0
    with RunningServer(data, "--driver", "oci", "--user", "root") as server:
        assert server.get("/function/hello").text == "hello"
    with pytest.raises(RuntimeError, match="there is no account"):
        RunningServer(data, "--driver", "oci", "--user", "nobody-is-called-so").start()
