"""`OciSandbox`: one sandbox of the oci driver, and everything that must be given back when it goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from worker.drivers.base import Exit, SandboxSpec, SandboxState
from worker.drivers.oci.process import Process
from worker.drivers.oci.scratch import Scratch
from worker.network.namespace import socket_in
from worker.network.pool import NetworkNamespace

CONNECT_SECONDS = 5.0
BACKLOG = 128


def _listener(port: int) -> Callable[[], socket.socket]:
    def make() -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        listener.setblocking(False)
        return listener

    return make


def _connector() -> socket.socket:
    connector = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    connector.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connector


@dataclass(eq=False)
class OciSandbox:
    """Implements `worker.drivers.base.Sandbox`. `namespace` and the streams are there when `create` is through."""

    spec: SandboxSpec
    bundle: Path
    exited: asyncio.Future[Exit]
    stdout: asyncio.StreamReader = field(init=False)
    stderr: asyncio.StreamReader = field(init=False)
    namespace: NetworkNamespace | None = None
    scratch: Scratch | None = None
    process: Process | None = None
    creating: asyncio.Task[None] | None = None
    starting: asyncio.Task[None] | None = None
    state: SandboxState = SandboxState.CREATED
    transports: list[asyncio.ReadTransport] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)  # the writing ends of its pipes, until it runs
    listeners: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.spec.id

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"

    def listen(self, port: int) -> socket.socket:
        assert self.namespace is not None
        listener = socket_in(self.namespace.descriptor, _listener(port))
        self.listeners.append(listener)
        return listener

    async def connect(self, port: int) -> socket.socket:
        assert self.namespace is not None
        connector = socket_in(self.namespace.descriptor, _connector)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(connector, ("127.0.0.1", port))
        except BaseException:
            connector.close()
            raise
        return connector

    def never_ran(self) -> None:
        """Settle what waits for the end of one that was never started."""
        self.state = SandboxState.STOPPED
        if not self.exited.done():
            self.exited.set_result(Exit(128 + signal.SIGKILL, signal.SIGKILL))

    def close_outputs(self) -> None:
        """Our copies of the writing ends: the streams end when the sandbox's own are closed."""
        while self.outputs:
            os.close(self.outputs.pop())

    def close_sockets(self) -> None:
        """An open socket would keep the namespace, and with it the link, alive."""
        for listener in self.listeners:
            with contextlib.suppress(OSError):
                listener.close()
        for transport in self.transports:
            transport.close()
