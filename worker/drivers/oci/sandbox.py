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
from typing import Any

from faas.errors import Conflict, Unavailable
from worker.drivers.base import Exit, SandboxSpec, SandboxState
from worker.drivers.linux.counters import Counters
from worker.drivers.oci.identities import Identity
from worker.drivers.oci.process import Process
from worker.drivers.oci.scratch import Scratch
from worker.network.namespace import socket_in
from worker.network.pool import NetworkNamespace

CONNECT_SECONDS = 5.0
BACKLOG = 128
LAST_WORDS_BYTES = 4096  # of a stem that failed, for the log


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
    """Implements `worker.drivers.base.Sandbox`. `namespace` and the streams are there when `create` is through.

    `name` is what its group, bundle and record are called on this machine. It is the id, except where it was started
    ahead, as a stem, and got the `spec` that it serves later (`worker.drivers.oci.stems`).
    """

    spec: SandboxSpec
    bundle: Path
    exited: asyncio.Future[Exit]
    counters: Counters
    stdout: asyncio.StreamReader = field(init=False)
    stderr: asyncio.StreamReader = field(init=False)
    namespace: NetworkNamespace | None = None
    scratch: Scratch | None = None
    identity: Identity | None = None
    process: Process | None = None
    creating: asyncio.Task[Any] | None = None
    starting: asyncio.Task[None] | None = None
    state: SandboxState = SandboxState.CREATED
    transports: list[asyncio.ReadTransport] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)  # the writing ends of its pipes, until it runs
    listeners: list[socket.socket] = field(default_factory=list)
    furniture: Path | None = None  # the layer with what it knows of this machine's resolver
    channel: socket.socket | None = None  # to a stem, until it begins
    inside: socket.socket | None = None  # the stem's end of it, until that runs
    is_parked: bool = False
    is_frozen: bool = False
    is_ahead: bool = False  # made for nobody yet: its first process waits before the command
    shares: int = 0  # of the CPU, until its init has ended; 0: the full share
    path: str = "cold"
    terminal: int = -1  # its master side, from the start until somebody takes it

    def __post_init__(self) -> None:
        self.name = self.spec.id

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"

    async def listen(self, port: int) -> socket.socket:
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
        """Our copies of what it was started with: streams and channel end when the sandbox's own are closed."""
        while self.outputs:
            os.close(self.outputs.pop())
        if self.inside is not None:
            self.inside.close()

    def take_terminal(self) -> int:
        descriptor, self.terminal = self.terminal, -1
        if descriptor < 0:
            raise Conflict("it has no terminal to give")
        return descriptor

    # As a stem

    def park(self) -> None:
        """It is to be started without its function, and to be told later which it is."""
        self.is_parked = True
        self.channel, self.inside = socket.socketpair()
        self.channel.setblocking(False)

    async def told(self, most: int) -> bytes:
        """One line of at most so many bytes from a stem. Raises Unavailable where it ended before its end."""
        assert self.channel is not None
        line = b""
        while not line.endswith(b"\n"):
            more = await asyncio.get_running_loop().sock_recv(self.channel, most)
            if not more or len(line) > most:
                last = await self.stderr.read(LAST_WORDS_BYTES)
                raise Unavailable(f"it ended before it was ready: {last.decode(errors='replace')}")
            line += more
        return line

    def tell(self, assignment: bytes) -> None:
        """What a stem is to become; it goes on when it begins. Raises OSError where it has ended."""
        assert self.channel is not None
        if self.channel.send(assignment) != len(assignment):
            raise OSError("the stem does not read")

    def become(self, spec: SandboxSpec) -> None:
        """From here on it is the sandbox of `spec`, and not started."""
        self.spec, self.path, self.is_parked, self.starting = spec, "stem", False, None
        if self.state is SandboxState.RUNNING:
            self.state = SandboxState.CREATED

    @property
    def is_assigned(self) -> bool:
        """Told what it is, and waiting to begin."""
        return self.channel is not None and not self.is_parked

    def begin(self) -> None:
        """The end of what a stem was told: it goes on from there."""
        assert self.channel is not None
        self.channel.close()
        self.channel = None
        if self.state is SandboxState.CREATED:
            self.state = SandboxState.RUNNING

    def close_sockets(self) -> None:
        """An open socket would keep the namespace, and with it the link, alive."""
        for listener in (*self.listeners, *([self.channel] if self.channel else [])):
            with contextlib.suppress(OSError):
                listener.close()
        for transport in self.transports:
            transport.close()
        if self.terminal >= 0:
            os.close(self.take_terminal())
        self.counters.close()
