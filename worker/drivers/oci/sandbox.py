"""`OciSandbox`: one sandbox of the oci driver, and everything that must be given back when it goes."""

from __future__ import annotations

import asyncio
import contextlib
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


@dataclass(slots=True, eq=False)
class OciSandbox:
    """Implements `worker.drivers.base.Sandbox`."""

    spec: SandboxSpec
    bundle: Path
    namespace: NetworkNamespace
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    transports: tuple[asyncio.ReadTransport, asyncio.ReadTransport]
    exited: asyncio.Future[Exit]
    outputs: list[int]  # the writing ends of its pipes, until it runs
    scratch: Scratch | None = None
    process: Process | None = None
    state: SandboxState = SandboxState.CREATED
    listeners: list[socket.socket] = field(default_factory=list)
    deleted: bool = False

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"

    def listen(self, port: int) -> socket.socket:
        listener = socket_in(self.namespace.descriptor, _listener(port))
        self.listeners.append(listener)
        return listener

    async def connect(self, port: int) -> socket.socket:
        connector = socket_in(self.namespace.descriptor, _connector)
        try:
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(connector, ("127.0.0.1", port)), CONNECT_SECONDS)
        except BaseException:
            connector.close()
            raise
        return connector

    def close_sockets(self) -> None:
        """An open socket would keep the namespace, and with it the link, alive."""
        for listener in self.listeners:
            with contextlib.suppress(OSError):
                listener.close()
        for transport in self.transports:
            transport.close()
