"""`DockerSandbox`: one sandbox of the docker driver."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field

from worker.drivers.base import Exit, SandboxSpec, SandboxState
from worker.drivers.docker_attach import Output
from worker.drivers.oci.scratch import Scratch
from worker.network.namespace import socket_in

CONNECT_SECONDS = 5.0


@dataclass(eq=False)
class DockerSandbox:
    """Implements `worker.drivers.base.Sandbox`."""

    spec: SandboxSpec
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    exited: asyncio.Future[Exit]
    pause: str = ""  # container ids
    container: str = ""
    group: str = ""  # control group of the function's container, once it runs
    namespace: int = -1  # descriptor of the network namespace
    output: Output | None = None
    scratch: Scratch | None = None
    state: SandboxState = SandboxState.CREATED
    unwanted: bool = False  # its removal was asked for
    listeners: list[socket.socket] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # making, starting, removing: one after the other
    path = "cold"

    @property
    def id(self) -> str:
        return self.spec.id

    async def listen(self, port: int) -> socket.socket:
        def make() -> socket.socket:
            listener = socket.create_server(("127.0.0.1", port), backlog=128)
            listener.setblocking(False)
            return listener

        self.listeners.append(socket_in(self.namespace, make))
        return self.listeners[-1]

    async def connect(self, port: int) -> socket.socket:
        connector = socket_in(
            self.namespace, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        )
        try:
            connector.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(connector, ("127.0.0.1", port))
        except BaseException:
            connector.close()
            raise
        return connector

    def ended(self, outcome: Exit) -> None:
        self.state = SandboxState.STOPPED
        if not self.exited.done():
            self.exited.set_result(outcome)

    def close_sockets(self) -> None:
        for listener in self.listeners:
            listener.close()
        if self.output is not None:
            self.output.close()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1
