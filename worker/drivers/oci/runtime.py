"""The OCI runtime program: runc, crun, or another that takes the same commands (runsc)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

from faas.errors import ImageUnusable, Unavailable
from worker.drivers.linux.cgroups import is_v2
from worker.network import programs

log = logging.getLogger("worker.drivers.oci")

LOG_FLAGS = ("--log-format", "json")
# gVisor: the network of the instance's namespace, where our sockets are, and not one of its own; files on the disk
# that the instance was given, and not in memory; the list of system calls, which its own kernel would not need.
OWN_FLAGS = {"runsc": ("--network=host", "--overlay2=none", "--oci-seccomp")}
START_SECONDS = 30.0
LEAVE_SECONDS = 5.0
LEAST_RUNC = (1, 1, 12)  # the first of upstream's without CVE-2024-21626, a way out through the working directory
# What runc and crun say when the image or the specification is at fault, not the machine: (their words, ours, what to
# do). Only where they enter the folder and execute: the same errors from anything else are not the image's.
FAULTS = (
    (
        r"chdir to (cwd \(|`)|current working directory is outside"
        r"|(container init: mkdir .*?|mkdir [^:]*/rootfs/.*?): (read-only file system|not a directory)",
        "the working directory cannot be entered",
        "check workdir",
    ),
    (
        r'exec: ".*?": (permission denied|exec format error|is a directory)'
        r"|open executable: |exec container process `.*?`: (permission denied|exec format error)",
        "the command cannot be executed",
        "wrong architecture, a missing interpreter, or no execute permission",
    ),
    (
        r'exec: ".*?": (stat .*?: )?(executable file not found|no such file or directory)'
        r"|failed to load .*?: no such file"
        r"|executable file `.*?` not found|exec container process \(missing dynamic library\?\)",
        "the command is not in the image",
        "check command and entrypoint",
    ),
)


def find(wanted: str = "") -> str | None:
    """The program that was asked for, or runc; with cgroup v2 alone crun first, which starts in half the time."""
    names = [wanted] if wanted else ["crun", "runc"] if is_v2() else ["runc"]
    return next((path for name in names if (path := programs.find(name))), None)


def warn_if_old(program: str) -> None:
    """Blocking. Log where the runtime may be older than what its fixed holes ask for."""
    if words := outdated(programs.attempt([program, "--version"]) or ""):
        log.warning("%s", words)


def outdated(version: str) -> str:
    """What is wrong with a runtime that says this to `--version`; empty where nothing is known.

    Distributions patch an old version: Debian's build names its revision ("commit: 1.1.5+ds1-1+deb12u1", security
    updates end in deb<release>u<number>), others need not.
    """
    found = re.search(r"runc version (\d+)\.(\d+)\.(\d+)(\S*)", version)
    if found is None or tuple(map(int, found.groups()[:3])) >= LEAST_RUNC:
        return ""
    name, least = found.group(0), ".".join(map(str, LEAST_RUNC))
    if not found.group(4):
        return f"{name} is older than {least} and open to CVE-2024-21626: update it"
    if re.search(r"deb\d+u\d+", version):
        return ""
    return f"{name} is a distribution's build: only its changelog says whether CVE-2024-21626 is fixed in it"


class Runtime:
    """Starts containers. State lies in `state`, on a file system that a reboot empties."""

    def __init__(self, program: str, state: Path) -> None:
        self._program = program
        self._state = state
        self._is_runc = Path(program).name == "runc"
        # runsc's, by instance; None while one starts: whose are the other processes that it leaves to us
        self._first_processes: dict[str, int | None] | None = {} if Path(program).name == "runsc" else None

    def run(
        self,
        sandbox_id: str,
        bundle: Path,
        stdout: int,
        stderr: int,
        channel: int | None = None,
        console: Path | None = None,
    ) -> int:
        """Blocking. create + start, detached, with these descriptors as output, and `channel` as descriptor 3; the
        first process's id. `console`: the socket that its terminal is sent to.

        Raises ImageUnusable where the command cannot be executed, Unavailable where the runtime failed otherwise.
        """
        verb = ("run", "--detach", *(("--console-socket", str(console)) if console else ()))
        return self._begin(verb, sandbox_id, bundle, stdout, stderr, channel)

    def create(self, sandbox_id: str, bundle: Path, stdout: int, stderr: int) -> int:
        """Blocking. As `run`, but the first process waits, before the command is executed, for `start`."""
        return self._begin(("create",), sandbox_id, bundle, stdout, stderr, None)

    def _begin(
        self, verb: tuple[str, ...], sandbox_id: str, bundle: Path, stdout: int, stderr: int, channel: int | None
    ) -> int:
        pid_file, log_file = bundle / "pid", bundle / "log"
        command = [*self._command(log_file), *verb, "--bundle", str(bundle), "--pid-file", str(pid_file)]
        stdin = subprocess.DEVNULL
        if channel is not None:  # runtimes hand on what begins at 3, and Popen keeps a descriptor's number
            stdin = channel
            command = ["/bin/sh", "-c", 'exec "$@" 3<&0 </dev/null', "sh", *command, "--preserve-fds", "1"]
        command.append(sandbox_id)
        if self._first_processes is not None:
            self._first_processes[sandbox_id] = None
        try:
            self._call(command, log_file, stdin, stdout, stderr)
            pid = int(pid_file.read_text())
            _adopt(pid)
            if self._first_processes is not None:
                self._first_processes[sandbox_id] = pid
            return pid
        finally:
            self._bury_orphans()

    def start(self, sandbox_id: str, bundle: Path, process: int) -> None:
        """Blocking. Let the first process of one that was created execute its command; `process` is its pidfd.

        Raises Unavailable where it has ended meanwhile.
        """
        if self._is_runc:
            try:
                _pass_gate(self._state / sandbox_id / "exec.fifo", process, START_SECONDS)
            except OSError as error:
                raise Unavailable(f"it waits no more: {error}") from None
            return
        log_file = bundle / "log"
        nothing = subprocess.DEVNULL
        try:
            self._call([*self._command(log_file), "start", sandbox_id], log_file, nothing, nothing, nothing)
        finally:
            self._bury_orphans()

    def _command(self, log_file: Path) -> list[str]:
        name = Path(self._program).name
        return [self._program, *OWN_FLAGS.get(name, ()), "--root", str(self._state), "--log", str(log_file), *LOG_FLAGS]

    def _call(self, command: list[str], log_file: Path, stdin: int, stdout: int, stderr: int) -> None:
        """Run the program to its end. Raises ImageUnusable, Unavailable."""
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        try:
            # In a session of its own, by which what it leaves to us is known (runsc: a process for each one's files).
            process = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True
            )
        except OSError as error:
            raise Unavailable(f"{self._program}: {error}") from None
        if _wait(process, START_SECONDS):
            raise _failure(log_file)

    def _bury_orphans(self) -> None:
        """Take the exit status of the grandchildren that crun and runsc leave, or each start would leave a zombie: they
        are ours as a subreaper. runc leaves none.

        They are in the session of a parent that is gone. What we start ourselves is in our session or leads its own,
        and so is the first process of an instance.
        """
        if self._is_runc:  # a look at each child would take 0.2 ms beside 100 instances
            return
        with contextlib.suppress(OSError):  # a kernel without the list
            for child in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    if os.getsid(child) not in (child, os.getsid(0)):
                        os.waitpid(child, os.WNOHANG)

    def forget(self, sandbox_id: str) -> None:
        """Blocking. Drop the runtime's record; `delete --force` would wait 100 ms for what we know has ended."""
        shutil.rmtree(self._state / sandbox_id, ignore_errors=True)
        if self._first_processes is not None:
            self._first_processes.pop(sandbox_id, None)
            for file in self._state.glob(f"{sandbox_id}_sandbox:*"):
                file.unlink(missing_ok=True)
            self._bury_orphans()
            if None not in self._first_processes.values():
                _bury_stubs(set(self._first_processes.values()))


def _pass_gate(fifo: Path, process: int, seconds: float) -> None:
    """What `runc start` does, without the 50 ms that the program takes: a created container's first process waits for a
    reader of this pipe, writes one byte, and executes (libcontainer, standard_init_linux.go). Raises OSError."""
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.register(process, select.POLLIN)  # its end
        if reading not in dict(poll.poll(seconds * 1000)) or not os.read(reading, 1):
            raise OSError("the first process does not answer")
        fifo.unlink()  # it stands for "created"
    finally:
        os.close(reading)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code. Popen's own wait looks only every 50 ms when it has a deadline."""
    if not _ended(process.pid, seconds):
        process.kill()
        process.wait()
        raise Unavailable(f"the runtime did not start the instance within {seconds:.0f} s")
    return process.wait()


def _ended(pid: int, seconds: float) -> bool:
    """Whether the process ends within that time."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(watched)


def _adopt(pid: int) -> None:
    """Wait until `pid` is our child: until then nobody can tell us how it ended.

    crun starts it from a grandchild, which may outlive the program that we waited for by a moment.
    """
    deadline = time.monotonic() + LEAVE_SECONDS
    while (parent := _parent(pid)) not in (0, os.getpid()) and (left := deadline - time.monotonic()) > 0:
        _ended(parent, left)


def _parent(pid: int) -> int:
    """0 where the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _bury_stubs(firsts: set[int | None]) -> None:
    """The same for what runsc traces its programs with: each leads a session, as the first process of an instance does,
    which is in `firsts`."""
    with contextlib.suppress(OSError):
        for child in map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
            with contextlib.suppress(OSError):
                if child not in firsts and Path(f"/proc/{child}/comm").read_text() == "exe\n":
                    os.waitpid(child, os.WNOHANG)


def _failure(log_file: Path) -> Exception:
    messages = []
    with contextlib.suppress(OSError):
        for line in log_file.read_text(errors="replace").replace("}{", "}\n{").splitlines():  # runsc ends no line
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level") in ("error", "fatal"):
                    messages.append(str(entry.get("msg", "")))
    text = " ".join(messages)[:500] or "it said nothing"
    for words, meaning, hint in FAULTS:
        if re.search(words, text, re.IGNORECASE):
            return ImageUnusable(f"{meaning}: {text}", hint=hint)
    return Unavailable(f"the runtime failed: {text}")
