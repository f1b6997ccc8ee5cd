"""`DockerSandbox`: one sandbox of the docker driver."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field, replace

from faas.errors import Conflict, ImageUnusable
from worker.drivers.base import Exit, SandboxSpec, SandboxState
from worker.drivers.docker.attach import Output
from worker.drivers.docker.pauses import Pause
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
    waits: bool = False  # made ahead, and not asked for yet
    path: str = "cold"
    pause: Pause | None = None  # holds the network namespace
    container: str = ""  # the engine's id of the function's own
    group: str = ""  # control group of the function's container, once it runs
    output: Output | None = None
    scratch: Scratch | None = None
    state: SandboxState = SandboxState.CREATED
    frozen: bool = False
    unwanted: bool = False  # its removal was asked for
    proved: bool = False  # by the kernel's counter: it went over its memory
    broken: ImageUnusable | None = None  # found out while it was made; told at its start
    listeners: list[socket.socket] = field(default_factory=list)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # making, starting, removing: one after the other

    @classmethod
    def of(cls, spec: SandboxSpec, ahead: bool) -> DockerSandbox:
        """Nothing of it is made yet."""
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        path = "precreated" if ahead else "cold"
        return cls(spec, asyncio.StreamReader(), asyncio.StreamReader(), exited, ahead, path)

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

    def take_terminal(self) -> int:
        raise Conflict("it has no terminal to give")

    @property
    def namespace(self) -> int:
        """Descriptor of the network namespace; -1 where there is none."""
        return self.pause.namespace if self.pause else -1

    def ended(self, outcome: Exit) -> None:
        self.state = SandboxState.STOPPED
        if not self.exited.done():
            out_of_memory = outcome.out_of_memory or (self.proved and outcome.code != 0)
            self.exited.set_result(replace(outcome, out_of_memory=out_of_memory))

    def close_sockets(self) -> None:
        for listener in self.listeners:
            listener.close()
        if self.output is not None:
            self.output.close()
