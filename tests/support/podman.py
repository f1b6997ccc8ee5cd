"""`podman system service`, as an engine that keeps everything in one folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.containers import ENGINE, STORAGE
from worker.drivers.linux import mounts

START_SECONDS = 30.0
ADDRESSES = Path("/var/lib/cni/networks")


@contextmanager
def podman_service(folder: Path) -> Iterator[str]:
    """Gives what DOCKER_HOST is to be."""
    runtime = "runc" if shutil.which("runc") else "crun"
    (folder / "containers.conf").write_text(ENGINE.format(folder=folder, events="file", runtime=runtime))
    (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
    environment = {
        **os.environ,
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "HOME": str(folder),
    }
    address, before = folder / "sock", _kept_by_cni()
    with open(folder / "log", "wb") as log:
        service = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{address}"],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
        )
    try:
        _wait(service, address, folder / "log")
        yield f"unix://{address}"
    finally:
        service.terminate()
        try:
            service.wait(15)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()
        for point in mounts.mounted_below(folder):
            mounts.unmount(point)
        shutil.rmtree(folder, ignore_errors=True)
        for kept in _kept_by_cni() - before:
            if kept.startswith("/"):
                shutil.rmtree(kept, ignore_errors=True)
            else:
                subprocess.run(["iptables", *shlex.split(kept)], capture_output=True)


def _kept_by_cni() -> set[str]:
    """What it does not take back with a network of ours: a folder, and rules, as the words that delete them."""
    folders = ADDRESSES.glob("fd????????") if ADDRESSES.is_dir() else ()
    found = {str(folder) for folder in folders if not list(folder.glob("*.*.*.*"))}  # no address is given
    if shutil.which("iptables"):
        rules = subprocess.run(["iptables", "-S"], capture_output=True, text=True).stdout.splitlines()
        found |= {f"-D {rule[3:]}" for rule in rules if re.match(r"-A CNI-ISOLATION-STAGE-\d -[io] fd\w{8} ", rule)}
    return found


def _wait(service: subprocess.Popen[bytes], address: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex(str(address)) == 0:
                return
        assert service.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, "podman's service does not listen"
        time.sleep(0.05)
