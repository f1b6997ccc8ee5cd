"""Another machine: a network of its own behind one cable, and an /etc of its own, both gone in the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Variables that say what this machine trusts, keeps and asks: another one has none of them.
OURS_ALONE = ("FAAS_", "SSL_", "XDG_", "DOCKER_", "PIP_", "NPM_", "REQUESTS_", "CURL_")
OURS, THEIRS = "198.51.100.253", "198.51.100.254"  # from TEST-NET-2: nobody's
# What is mounted is seen by this command alone; what it writes to /etc is there for the next one.
IN_ITS_ETC = 'mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/etc,workdir=$0/work" /etc && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """`server` is this machine's address, as that one reaches it."""

    folder: Path
    network: str
    server: str

    @property
    def etc(self) -> Path:
        """What it has beyond this machine's."""
        return self.folder / "etc"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(
        self, *command: str | Path, stdin: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        outside = ["nsenter", f"--net=/run/netns/{self.network}", "unshare", "--mount", "--propagation", "private"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS_ALONE)}
        return subprocess.run(
            [*outside, "sh", "-c", IN_ITS_ETC, self.folder, *map(str, command)],
            env={**kept, "HOME": str(self.home), "NO_COLOR": "1", **(env or {})},
            input=stdin,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
        )


@contextmanager
def another_machine(folder: Path, *names: str) -> Iterator[Machine]:
    """One that knows this machine by `names`."""
    network = f"test{os.getpid()}"
    near, far = f"{network}a", f"{network}b"
    for below in ("etc", "work", "home"):
        (folder / below).mkdir(parents=True)
    (folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{OURS} {' '.join(names)}\n")
    _ip("netns", "add", network)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", network)
        _ip("address", "add", f"{OURS}/30", "dev", near)
        _ip("link", "set", near, "up")
        for words in (("link", "set", "lo", "up"), ("address", "add", f"{THEIRS}/30", "dev", far)):
            _ip("-n", network, *words)
        _ip("-n", network, "link", "set", far, "up")
        yield Machine(folder, network, OURS)
    finally:
        subprocess.run(["ip", "link", "delete", near], capture_output=True)
        _ip("netns", "delete", network)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
