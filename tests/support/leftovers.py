"""What a server may have left on the machine: mounts, cgroups, loop devices, firewall tables, interfaces, processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOSENED_SECONDS = 10.0  # the kernel lets a loop device go some time after its mount: of hundreds, after seconds


def _mounts() -> set[str]:
    rows = Path("/proc/self/mounts").read_text().splitlines()
    return {row for row in rows if "faas" in row}


def _cgroups() -> set[str]:
    tops = (Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if Path(folder).name.startswith("faas"))
    # os.walk, since groups of other servers may go while we look
    return {below for top in tops for below, _, _ in os.walk(top) if len(Path(below).relative_to(top).parts) >= 2}


def _loops() -> set[str]:
    found = set()
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # those of other servers may go while we look
            found.add(f"{file} {file.read_text().strip()}")
    return found


def _lines(*command: str) -> set[str]:
    if not shutil.which(command[0]):
        return set()
    return set(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())


def _interfaces() -> set[str]:
    return {p.name for p in Path("/sys/class/net").iterdir()}


def _named_namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {p.name for p in folder.iterdir()} if folder.exists() else set()


def _sandboxes() -> set[str]:
    """Processes that live in a cgroup of ours. The dead are left out: a crashed server's orphans are init's to bury."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                groups = [line for line in (process / "cgroup").read_text().splitlines() if "/faas/" in line]
                dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if groups and not dead:
                    found.add(f"{process.name} {(process / 'comm').read_text().strip()} {groups[0]}")
            except OSError:
                continue
    return found


def sandboxed(server_id: str) -> list[str]:
    """Processes in the sandboxes of one server: id, name, group."""
    return sorted(row for row in _sandboxes() if server_id in row)


def _launchers() -> set[str]:
    """The processes that keep root for a server: its id and its data folder are in their command line."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"worker.launcher" in words:
                    found.add(f"{process.name} {b' '.join(words).decode(errors='replace')}")
    return found


def on_this_machine() -> dict[str, set[str]]:
    return {
        "mounts": _mounts(),
        "cgroups": _cgroups(),
        "loop devices": _loops(),
        "nft tables": {line for line in _lines("nft", "list", "tables") if "faas" in line},
        "interfaces": _interfaces(),
        "named namespaces": _named_namespaces(),
        "sandboxed processes": _sandboxes(),
        "launchers": _launchers(),
    }


@contextmanager
def none_left(*marks: str) -> Iterator[None]:
    """Fail where something is there afterwards that was not there before.

    `marks` name one server (its id, its data folder): what carries none of them is somebody else's.
    """
    before = on_this_machine()
    yield
    wanted = marks or ("",)
    deadline = time.monotonic() + LOOSENED_SECONDS
    while True:
        after = on_this_machine()
        left = {
            kind: found
            for kind in after
            if (found := sorted(row for row in after[kind] - before[kind] if any(mark in row for mark in wanted)))
        }
        if not left or set(left) != {"loop devices"} or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert left == {}, left
