"""A sandbox's terminal: the runtime makes the pair inside, and sends us the master (runtime-spec, `process.terminal`).

The runtime programs connect to a socket that we listen on, and send the descriptor with SCM_RIGHTS.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from faas.errors import Unavailable
from worker.drivers.oci.runtime import Runtime
from worker.drivers.oci.sandbox import OciSandbox

CONSOLE_SECONDS = 10.0
NAME_BYTES = 4096  # of the terminal's name inside, which comes with the descriptor


class Console:
    """Where one runtime program sends one terminal. Blocking."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self.path.chmod(0o600)
        self._listener.listen(1)
        self._listener.settimeout(CONSOLE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def master(self) -> int:
        """The descriptor, non-blocking; the caller's to close. Raises Unavailable."""
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(CONSOLE_SECONDS)
                _, descriptors, _, _ = socket.recv_fds(connection, NAME_BYTES, 1)
        except OSError as error:
            raise Unavailable(f"the runtime sent no terminal: {error}") from None
        if not descriptors:
            raise Unavailable("the runtime sent no terminal")
        os.set_inheritable(descriptors[0], False)
        os.set_blocking(descriptors[0], False)
        return descriptors[0]


def run(runtime: Runtime, sandbox: OciSandbox) -> int:
    """Blocking. Start the sandbox, on a terminal where its spec says so; the first process's id. Raises as
    `Runtime.run`."""
    inside = sandbox.inside.fileno() if sandbox.inside else None
    stdout, stderr = sandbox.outputs
    if not sandbox.spec.terminal:
        return runtime.run(sandbox.name, sandbox.bundle, stdout, stderr, inside)
    with Console(sandbox.bundle / "console") as console:
        pid = runtime.run(sandbox.name, sandbox.bundle, stdout, stderr, console=console.path)
        sandbox.terminal = console.master()
    return pid
