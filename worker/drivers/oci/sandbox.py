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
from worker.drivers.oci.process import Process, stream
from worker.drivers.oci.scratch import Scratch
from worker.network.namespace import socket_in
from worker.network.pool import NetworkNamespace
from worker.sandbox_spec import RUNTIME_API_PORT

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
    """Implements `worker.drivers.base.Sandbox`. `namespace` is there when `create` is through, and the streams are when
    it is read.

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
    hiding: asyncio.Task[None] | None = None
    state: SandboxState = SandboxState.CREATED
    transports: list[asyncio.ReadTransport] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)  # the writing ends of its pipes, until it runs
    unread: list[int] = field(default_factory=list)  # the reading ends, until somebody reads or takes them
    listeners: list[socket.socket] = field(default_factory=list)
    api: socket.socket | None = None  # a stem's: listens at the Runtime API's port ahead, until somebody takes it
    furniture: Path | None = None  # the layer with what it knows of this machine's resolver
    channel: socket.socket | None = None  # to a stem, until it begins
    inside: socket.socket | None = None  # the stem's end of it, until that runs
    is_parked: bool = False
    is_frozen: bool = False
    freezes: int = 0  # so often it was asked to stand still
    is_under_way: bool = False  # a stem that has gone on before `start` said so
    is_ahead: bool = False  # made for nobody yet: its first process waits before the command
    shares: int = 0  # of the CPU, until its init has ended; 0: the full share
    path: str = "cold"
    is_looked_into: bool = False  # its scratch file system, after its end
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
        return self.listener(port)

    def listener(self, port: int) -> socket.socket:
        assert self.namespace is not None
        if port == RUNTIME_API_PORT and self.api is not None:
            listener, self.api = self.api, None
        else:
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

    def make_pipes(self, owner: tuple[int, int]) -> None:
        """Of its output; `owner` may open them again, by /dev/stdout."""
        for _ in range(2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            self.unread.append(reading)
            self.outputs.append(writing)
            os.fchown(writing, *owner)

    async def read(self) -> None:
        """Read its output, as `stdout` and `stderr`, from here on."""
        while self.unread:
            reader, transport = await stream(self.unread.pop(0))
            self.transports.append(transport)
            if len(self.transports) == 1:
                self.stdout = reader
            else:
                self.stderr = reader

    def take_unread(self) -> list[int]:
        """The reading ends of stdout and stderr, which nobody reads here; from here on the caller's."""
        taken, self.unread = self.unread, []
        return taken

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

    async def wait(self, most: int) -> bytes:
        """Its Runtime API listens, and it has said that it waits, with a line of at most so many bytes. Raises
        Unavailable where it ended before."""
        assert self.namespace is not None
        self.api = socket_in(self.namespace.descriptor, _listener(RUNTIME_API_PORT))
        return await self._told(most)

    async def _told(self, most: int) -> bytes:
        assert self.channel is not None
        line = b""
        while not line.endswith(b"\n"):
            more = await asyncio.get_running_loop().sock_recv(self.channel, most)
            if not more or len(line) > most:
                await self.read()
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

    def begin(self) -> None:
        """The end of what a stem was told: it goes on from there, before `start` says so."""
        assert self.channel is not None
        self.channel.close()
        self.channel = None
        self.is_under_way = True
        if self.state is SandboxState.CREATED:
            self.state = SandboxState.RUNNING

    def goes_on(self) -> bool:
        """`start` says so: whether it is a stem that was told what it is, which goes on now or has already."""
        if self.channel is not None and not self.is_parked:
            self.begin()
            if self.api is not None:  # a port that nobody listens on is its own
                self.api.close()
                self.api = None
        goes_on, self.is_under_way = self.is_under_way, False
        return goes_on

    def close_sockets(self) -> None:
        """An open socket would keep the namespace, and with it the link, alive."""
        for listener in filter(None, (*self.listeners, self.api, self.channel)):
            with contextlib.suppress(OSError):
                listener.close()
        for transport in self.transports:
            transport.close()
        for descriptor in self.take_unread():
            os.close(descriptor)
        if self.terminal >= 0:
            os.close(self.take_terminal())
        self.counters.close()
