"""Control groups as folders of files, and their processes (cgroups(7)). Everything blocks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

REMOVE_SECONDS = 2.0  # a group is busy until the kernel has buried its last process
SWEEP_SECONDS = 5.0
BURY_SECONDS = 1.0


def write(path: str, text: bytes) -> None:
    """To a file that exists: a group's files are never made by us. Starts wait for this, and to make a `Path` takes
    longer than to open it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def table(path: Path) -> dict[str, int]:
    """A file of `name value` lines; empty where it is gone."""
    try:
        rows = (line.split() for line in path.read_text().splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    except OSError:
        return {}


def processes(folder: Path) -> list[int]:
    found: list[int] = []
    for listed in (folder / "cgroup.procs", *folder.glob("**/cgroup.procs")):
        with contextlib.suppress(OSError):
            # 0 is one of another PID namespace: to signal it would mean our own group of processes.
            found += [process for process in map(int, listed.read_text().split()) if process]
    return found


def children(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def signal_all(found: Iterable[int]) -> None:
    """SIGKILL."""
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def thaw_below(folder: Path) -> None:
    """Under v1 what is frozen does not die before it is thawed."""
    for state in folder.glob("**/freezer.state"):
        with contextlib.suppress(OSError):
            state.write_text("THAWED")


def kill_all(*folders: Path) -> set[int]:
    """SIGKILL, until none is left: a process may fork while it is being read. The ids of those that were there."""
    deadline = time.monotonic() + SWEEP_SECONDS
    killed: set[int] = set()
    while (found := [process for folder in folders for process in processes(folder)]) and time.monotonic() < deadline:
        signal_all(found)
        for folder in folders:
            thaw_below(folder)
        killed.update(found)
        time.sleep(0.005)
    return killed


def bury(killed: set[int]) -> None:
    """Take the exit status of those that are ours or were handed to us; what does not die is not waited for."""
    deadline = time.monotonic() + BURY_SECONDS
    for process in killed:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(process, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.002)


def remove_tree(folder: Path, deadline: float) -> None:
    """rmdir from the bottom up; control files go with their folder."""
    below = [Path(f) for f, _, _ in os.walk(folder, topdown=False)] if folder.exists() else []
    for path in below:
        while True:
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.002)
                    continue
            break
