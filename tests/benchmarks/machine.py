"""What the benchmarks set up here: a program in C, servers, functions; and what processes cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.client import Load, wrk
from tests.support.leftovers import none_left
from tests.support.server import RunningServer

PROGRAMS = Path(__file__).with_name("programs")
SAMPLES = Path(__file__).resolve().parents[1] / "functions"
FULL_CORE = 1769  # MB of memory that come with one CPU
READY_SECONDS = 60.0


def missing() -> list[str]:
    """What the benchmarks need and this machine lacks."""
    tools = (
        "gcc", "runc", "docker", "docker-registry", "nginx", "wrk", "h2load", "node", "nft", "mkfs.ext4", "openssl",
        "curl",
    )  # fmt: skip
    lacking = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacking.append("root")
    if "docker" not in lacking and subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode:
        lacking.append("a Docker Engine that answers")
    return lacking


@contextmanager
def work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faas-bench-") as name:
        yield Path(name)


@contextmanager
def server(*flags: str) -> Iterator[RunningServer]:
    """A server of its own, gone with all that it made at the end of the block; fails where it left something."""
    with work_folder() as work:
        running = RunningServer(work / "data", "--registry-auth", "none", *flags, whole=True)
        with none_left(running.id, str(running.data)), running:
            yield running


def compiled(target: Path) -> Path:
    """`programs/hello.c` as a static program in the folder `target`."""
    program = target / "hello"
    command = ["gcc", "-O2", "-static", "-o", str(program), str(PROGRAMS / "hello.c")]
    subprocess.run(command, check=True, timeout=60)
    return program


def folder_of(work: Path, name: str, toml: str, **files: Path) -> Path:
    """A function's folder; `files` are named without their suffix, which is the copied file's."""
    folder = work / name
    folder.mkdir()
    (folder / "faas.toml").write_text(f'name = "{name}"\npublic = true\n{toml}\n')
    for stem, path in files.items():
        shutil.copyfile(path, folder / f"{stem}{path.suffix}")
    return folder


def described(running: RunningServer, name: str) -> dict[str, Any]:
    answer = running.get(f"/v1/functions/{name}", api=True)
    if answer.status != 200:
        raise RuntimeError(f"{name}: {answer.text}")
    return dict(answer.json())


def deploy(running: RunningServer, name: str, image: str, spec: dict[str, Any]) -> None:
    """A new function from an image that is in the registry. Its layers are unpacked; no instance is started."""
    body = {"spec": {**spec, "name": name, "public": True}, "image": image, "check": False}
    answer = running.request("PUT", f"/v1/functions/{name}", json.dumps(body).encode(), api=True)
    if answer.status != 201:
        raise RuntimeError(f"{name} was not deployed: {answer.text}")


def delete(running: RunningServer, name: str) -> None:
    running.request("DELETE", f"/v1/functions/{name}", api=True)


def ready(running: RunningServer, name: str, instances: int) -> None:
    """Returns when so many instances are idle."""
    deadline = time.monotonic() + READY_SECONDS
    while described(running, name)["instances"]["idle"] != instances:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} has not {instances} idle instances within {READY_SECONDS:.0f} s")
        time.sleep(0.1)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loaded(url: str, connections: int, pid: int) -> tuple[Load, float]:
    """What wrk saw, and the CPU time of process `pid` in µs by the requests that were answered."""
    before = cpu_seconds(pid)
    load = wrk(url, connections)
    return load, (cpu_seconds(pid) - before) / max(1, load.requests) * 1e6


def memory_mib(pid: int) -> float:
    """What is resident and its own, or its share of what others use too (Pss)."""
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(row.split()[1] for row in rows if row.startswith("Pss:"))) / 1024
