"""`faas debug` and `faas doctor` against a real server, with a person's terminal in front of it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from faas.cli.doctor_host import of_the_server
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]
CODE = "import os\n\ndef handler(event, context):\n    return [os.environ['FAAS_INSTANCE'], 'debugged-for-real']\n"


class Person:
    """Somebody at a terminal, in which a command of the command line runs."""

    def __init__(self, server: RunningServer, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(90, 30)
        env = {**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token, "TERM": "vt100"}
        self.modes = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faas.cli", *args], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        self._slave = slave
        self.seen = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def sees(self, text: str, seconds: float = 20.0) -> str:
        """What came before it; both are seen then."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self._master], [], [], left)[0]:
                self.seen += os.read(self._master, 65_536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def leaves(self) -> int:
        """The exit code; the terminal is as it was."""
        code = self.process.wait(20)
        assert termios.tcgetattr(self._slave) == self.modes
        os.close(self._slave)
        os.close(self._master)
        return code


def test_a_person_has_a_shell_beside_the_functions_instances(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "debugged", CODE, 'memory = 256\n[env]\nLEVEL = "info"')
    live = server.get("/function/debugged").json()[0]
    person = Person(server, "debug", "debugged")
    person.sees("$ ")
    person.type("echo $LEVEL-$AWS_LAMBDA_FUNCTION_MEMORY_SIZE-$TERM; echo in-$FAAS_INSTANCE-\n")
    person.sees("info-256-vt100\r\n")
    person.sees("in-")
    assert person.sees("-") not in ("", live)
    listed = json.loads(server.faas("describe", "debugged", "-o", "json").stdout)["instances_list"]
    assert [one["id"] for one in listed] == [live], "it is no instance that is invoked"
    person.resize(100, 40)
    person.process.send_signal(signal.SIGWINCH)  # as the kernel does to whoever has the terminal as its own
    person.type("exec /usr/bin/python3.* -c 'import os,time\nprint(os.get_terminal_size())\ntime.sleep(60)'\n")
    person.sees("columns=100, lines=40")
    person.type("\x03")
    person.sees("KeyboardInterrupt")
    assert person.leaves() in (1, 130)


def test_a_debug_session_leaves_nothing_when_its_client_is_killed(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "debugged-away", CODE + "# away\n")
    person = Person(server, "debug", "debugged-away")
    person.sees("$ ")
    before = charged(server)
    person.process.kill()
    person.process.wait()
    deadline = time.monotonic() + 20
    while charged(server) >= before:
        assert time.monotonic() < deadline, "its memory is still charged"
        time.sleep(0.05)


def charged(server: RunningServer) -> float:
    """Bytes of jobs in the memory ledger."""
    page = server.get("/metrics", api=True).text
    return next(float(row.split()[-1]) for row in page.splitlines() if 'faas_memory_charged_bytes{kind="job"}' in row)


def test_a_pipe_is_typed_and_the_exit_status_comes_back(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "debugged-pipe", CODE + "# pipe\n")
    env = {**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token}
    command = [sys.executable, "-m", "faas.cli", "debug", "debugged-pipe"]
    done = subprocess.run(
        [*command, "--", "sh", "-c", "read line; echo got $line; exit 9"], input="a word\n", env=env,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (9, "got a word\n")


def test_the_doctor_looks_from_inside_an_instance_and_at_the_servers_table(server: RunningServer) -> None:
    done = server.faas("doctor", "-o", "json", check=False)
    found = {row["check"]: row for row in json.loads(done.stdout)}
    assert found["sandbox"]["state"] == "ok", found["sandbox"]
    assert found["sandbox walls"]["state"] == "ok"
    assert found["ready"]["state"] == "ok"
    here = {one.check: one.state for one in of_the_server(server.data, "oci")}
    assert here["firewall"] == "ok"
    other = {one.check: one.state for one in of_the_server(server.data / "other", "oci")}
    assert other["firewall"] == "missing"
