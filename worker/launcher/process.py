"""Starting the launcher: a process of its own that has root, a socket, and no word from any client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from worker.launcher import wire
from worker.launcher.lock import Lock

WAIT_SECONDS = 60.0  # for its end: it ends every sandbox that is left
_PACKAGES = Path(__file__).resolve().parent.parent.parent  # where it finds this package
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Options:
    """What root chose before anybody else had a say: the launcher takes no other word for it."""

    data: str
    server_id: str
    log_format: str = "text"
    driver: Mapping[str, Any] = field(default_factory=dict)  # `OciDriver`'s own

    @property
    def layers(self) -> Path:
        return Path(self.data) / "layers"

    @property
    def scratch(self) -> Path:
        return Path(self.data) / "scratch"


class Launched:
    """A launcher that runs, and our end of its socket."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self._process = process
        self._end: socket.socket | None = end

    @property
    def pid(self) -> int:
        return self._process.pid

    def take(self) -> socket.socket:
        """Our end; whoever takes it closes it."""
        assert self._end is not None
        end, self._end = self._end, None
        return end

    def wait(self) -> None:
        """Blocking. Until it has ended, which it does when our end is closed, or has taken too long."""
        if self._end is not None:
            self._end.close()
            self._end = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(WAIT_SECONDS)


def _make_folders(options: Options) -> None:
    """Those that are the launcher's alone, where they are not there."""
    for folder in (options.layers, options.scratch):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def stand_in(options: Options) -> Lock:
    """Blocking, as root, where there is to be no launcher and the driver runs in this process: the one before it, which
    outlives a server that crashed, must have ended all the same, for what both make has the same names. The lock goes
    with this process. Raises OSError, Unavailable."""
    _make_folders(options)
    lock = Lock(options.layers, options.scratch)
    asyncio.run(lock.take())
    return lock


def start(options: Options) -> Launched:
    """Blocking, as root. Raises OSError."""
    _make_folders(options)
    ours, theirs = wire.pair()
    with theirs:
        command = [sys.executable, "-B", "-P", "-s", "-m", "worker.launcher"]
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), json.dumps(asdict(options))],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": _PATH, "LANG": "C.UTF-8", "PYTHONPATH": str(_PACKAGES)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # what a terminal sends to all is not for it
            )
        except BaseException:
            ours.close()
            raise
    return Launched(process, ours)


def options_of(arguments: list[str]) -> tuple[int, Options]:
    """The launcher's side of `start`: its socket's descriptor, and the rest."""
    return int(arguments[0]), Options(**json.loads(arguments[1]))


def inherited(descriptor: int) -> socket.socket:
    end = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    return end
