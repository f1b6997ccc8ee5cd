"""The `Driver` port: what the pool asks of whatever runs containers. One contract suite runs over every driver.

The verbs are the runtime-spec's: create, start, kill, delete, state. Ids are ours (`[a-z0-9]{1,32}`), `delete` of what
is absent is no error, and what only one driver needs lives in that driver's own settings, never here.

Life of a sandbox: `create` (file systems, network namespace, limits; nothing runs) → listen inside it → `start` →
`exited` resolves, or `kill` → `delete`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from faas.oci.manifest import ImageConfig
from faas.secret import NOTHING, Given
from faas.spec import Network

NOBODY = 65534  # the user inside where the image names none, or root


class SandboxState(enum.StrEnum):
    """runtime-spec's states."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image whose files are here. `handle` is the driver's own (lower folders, an engine's image id).

    `stays`: they are here as long as the driver is open, whoever else removes images; it need not be prepared again.
    `warnings` are what a deploy should be told of how this machine runs it.
    """

    reference: str  # repository@digest
    config: ImageConfig
    handle: object
    stays: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What to run and within which limits. All sizes in bytes, CPUs as a number (1.0 = one core).

    `args` is the whole command line; `user` is (uid, gid), numeric and never 0; `tmp_bytes` is the hard size of /tmp
    (and of the writable root, where `writable_root`), on disk.
    """

    id: str
    image: PreparedImage
    args: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # less the variables of `secrets`
    workdir: str
    memory_bytes: int
    cpus: float
    tmp_bytes: int
    user: tuple[int, int] = (NOBODY, NOBODY)
    pids: int = 256
    open_files: int = 1024
    writable_root: bool = False
    network: Network = Network.OUTBOUND
    hostname: str = "function"
    terminal: bool = False  # its first process has one, instead of stdout and stderr
    labels: Mapping[str, str] = field(default_factory=dict)
    secrets: Given = NOTHING  # read-only files in each of `faas.secret.FOLDERS`, in memory, and variables

    def environment(self) -> dict[str, str]:
        """All variables, in clear: for the process itself, and for no file that outlives it."""
        return {**self.env, **self.secrets.environment()}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a sandbox ended. `signal` is 0 for a plain exit; `out_of_memory` is proved by the kernel's counter."""

    code: int
    signal: int = 0
    out_of_memory: bool = False

    def __str__(self) -> str:
        if self.out_of_memory:
            return "out of memory"
        return f"signal: {_signal_name(self.signal)}" if self.signal else f"exit status {self.code}"


def _signal_name(number: int) -> str:
    return {6: "aborted", 9: "killed", 11: "segmentation fault", 15: "terminated"}.get(number, str(number))


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """Measured by the kernel. `memory_bytes` is anonymous + shared + kernel memory: no file cache."""

    memory_bytes: int
    oom_kills: int
    pids: int
    cpu_seconds: float


class Sandbox(Protocol):
    """One sandbox of a driver. `exited` resolves once, when the first process has ended; it never raises."""

    @property
    def id(self) -> str: ...

    @property
    def path(self) -> str:
        """How it came to be: `cold`; `precreated`: made ahead, but for its process; `stem`: from a runtime that was
        started ahead and waited for its function."""
        ...

    @property
    def stdout(self) -> asyncio.StreamReader: ...

    @property
    def stderr(self) -> asyncio.StreamReader: ...

    @property
    def exited(self) -> asyncio.Future[Exit]: ...

    async def listen(self, port: int) -> socket.socket:
        """A non-blocking TCP socket that listens on 127.0.0.1:`port` inside the sandbox."""
        ...

    async def connect(self, port: int) -> socket.socket:
        """A non-blocking socket connected to 127.0.0.1:`port` inside. Raises OSError (ConnectionRefusedError …)."""
        ...

    def take_terminal(self) -> int:
        """The master side of its terminal, non-blocking, once it has started; from here on the caller's to close.
        Raises Conflict where there is none, or it was taken."""
        ...


LEND_SECONDS = 10.0  # so long a driver waits for memory at most
Lend = Callable[[int], AbstractAsyncContextManager[None]]  # so many bytes, for so long; entering raises FaasError


@contextlib.asynccontextmanager
async def freely(_: int) -> AsyncIterator[None]:
    """Lends where nobody keeps books."""
    yield


class Driver(Protocol):
    """Runs sandboxes."""

    name: str
    lend: Lend
    """Memory for a sandbox of the driver's own, that nobody asked it for: whoever keeps the books sets this."""
    freeze_grace_seconds: float
    """So long an instance is idle before it is frozen: many times what `freeze` and `thaw` take together, so that a
    caller who comes back at once never pays for them."""

    async def open(self) -> None:
        """Prepare the machine and sweep what a crashed server of the same data folder left. Raises Unavailable."""
        ...

    async def close(self) -> None:
        """Delete every sandbox and leave nothing on the machine."""
        ...

    async def prepare(self, reference: str) -> PreparedImage:
        """Bring `repository@digest` here, unpacked; idempotent, one at a time per digest. Raises ImageUnusable."""
        ...

    async def collect(self, held: Collection[str]) -> int:
        """Remove what `prepare` brought here of other images (`repository@digest`) than these; bytes, where known.

        What sandboxes run, and what was prepared within the last hour, stays. Raises FaasError, with nothing removed.
        """
        ...

    async def create(self, spec: SandboxSpec, *, ahead: bool = False, at_once: bool = False) -> Sandbox:
        """Everything but the process. Raises Conflict where the id exists, Unavailable where there is no room,
        NotOffered where this driver has no `terminal`.

        `at_once`: `start` follows at once, and the Runtime API alone is listened to before it. Where all is there but
        the function, as in a stem, that goes on already, with the Runtime API listening.

        `ahead`: nobody waits for it, so all that can be done before `start` is done here, and no stem is taken for it;
        Unavailable where a stem would serve it sooner. Who uses it says `create` again, with the same spec and without
        `ahead`: what was made ahead is given then, where it is still what a new one would be, else a new one.
        """
        ...

    async def start(self, sandbox: Sandbox) -> None:
        """Run the command. Raises ImageUnusable where it cannot be executed."""
        ...

    async def kill(self, sandbox: Sandbox) -> None:
        """End every process in it, at once; returns when `exited` is resolved. No error where it has ended."""
        ...

    async def delete(self, sandbox_id: str) -> None:
        """Kill it and remove all that belongs to it, also of one that a driver finds but does not hold (see `ids`).

        No error where it is absent. Raises Unavailable where something of it stays; another call tries again.
        """
        ...

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        """Change the CPU limit: init runs at a full core, the rest at the function's share. Its start is over: where it
        weighed less than others meanwhile, it weighs as much from here on."""
        ...

    async def freeze(self, sandbox: Sandbox) -> None:
        """Stop every process in it where it stands (freezer): none runs, none gets memory, until `thaw`. `kill` and
        `delete` need no thaw before them. No error where it has ended."""
        ...

    async def thaw(self, sandbox: Sandbox) -> None:
        """Let them go on. No error where it is not frozen, or has ended."""
        ...

    def spare_bytes(self) -> int:
        """Measured memory of what runs ready for nobody yet (stems, pauses): on nobody's account but the machine's."""
        ...

    async def drop_spares(self) -> None:
        """Their memory is needed: end them. They come back when there is room and need."""
        ...

    def state(self, sandbox: Sandbox) -> SandboxState: ...

    async def ids(self) -> list[str]:
        """The ids of the sandboxes that exist on this machine for this server."""
        ...

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        """Cheap enough for every 50 ms: a few file reads, or the last sample where an engine has to be asked."""
        ...


@dataclass(frozen=True, slots=True)
class DriverPaths:
    """Where a driver keeps its things."""

    data: Path  # layers, pools: survives a restart
    server_id: str  # short id of the data folder, in the names of cgroups, nft tables and labels
