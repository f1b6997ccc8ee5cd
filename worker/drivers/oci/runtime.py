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
from pathlib import Path

from faas.errors import ImageUnusable, Unavailable
from worker.drivers.oci.cgroups import is_v2

log = logging.getLogger("worker.drivers.oci")

START_SECONDS = 30.0
LEAST_RUNC = (1, 1, 5)  # distributions patch the later holes into it; below it, start-up warns
# What runtimes say when the image or the specification is at fault, not we: (their words, ours, what to do).
FAULTS = (
    (r"chdir|cwd|mkdir .*read-only file system", "the working directory cannot be entered", "check workdir"),
    (
        r"permission denied|exec format error",
        "the command cannot be executed",
        "wrong architecture, a missing interpreter, or no execute permission",
    ),
    (
        r"executable file .*not found|no such file or directory",
        "the command is not in the image",
        "check command and entrypoint",
    ),
)


def find(wanted: str = "") -> str | None:
    """The program that was asked for, or runc; with cgroup v2 alone crun first, which starts in half the time."""
    names = [wanted] if wanted else ["crun", "runc"] if is_v2() else ["runc"]
    return next((path for name in names if (path := shutil.which(name))), None)


def warn_if_old(program: str) -> None:
    """Blocking. Log where the runtime is older than what its fixed holes ask for."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
        found = re.search(r"runc version (\d+)\.(\d+)\.(\d+)", text)
        if found and tuple(map(int, found.groups())) < LEAST_RUNC:
            log.warning("%s is older than %s: update it", text.splitlines()[0], ".".join(map(str, LEAST_RUNC)))


class Runtime:
    """Starts containers. State lies in `state`, on a file system that a reboot empties."""

    def __init__(self, program: str, state: Path) -> None:
        self._program = program
        self._state = state

    def run(self, sandbox_id: str, bundle: Path, stdout: int, stderr: int) -> int:
        """Blocking. create + start, detached, with these descriptors as output; the first process's id.

        Raises ImageUnusable where the command cannot be executed, Unavailable where the runtime failed otherwise.
        """
        pid_file, log_file = bundle / "pid", bundle / "log"
        command = [self._program, "--root", str(self._state), "--log", str(log_file), "--log-format", "json"]
        command += ["run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), sandbox_id]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env)
        except OSError as error:
            raise Unavailable(f"{self._program}: {error}") from None
        if _wait(process, START_SECONDS):
            raise _failure(log_file)
        return int(pid_file.read_text())

    def forget(self, sandbox_id: str) -> None:
        """Blocking. Drop the runtime's record; `delete --force` would wait 100 ms for what we know has ended."""
        shutil.rmtree(self._state / sandbox_id, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code. Popen's own wait looks only every 50 ms when it has a deadline."""
    watched = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        if not poll.poll(seconds * 1000):
            process.kill()
            process.wait()
            raise Unavailable(f"the runtime did not start the instance within {seconds:.0f} s")
    finally:
        os.close(watched)
    return process.wait()


def _failure(log_file: Path) -> Exception:
    messages = []
    with contextlib.suppress(OSError):
        for line in log_file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("level") in ("error", "fatal"):
                    messages.append(str(entry.get("msg", "")))
    text = " ".join(messages)[:500] or "it said nothing"
    for words, meaning, hint in FAULTS:
        if re.search(words, text, re.IGNORECASE):
            return ImageUnusable(f"{meaning}: {text}", hint=hint)
    return Unavailable(f"the runtime failed: {text}")
