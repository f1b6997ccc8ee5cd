"""`LaunchedDriver`: the server's side of the launcher, which has no privilege itself.

Sandboxes are the launcher's; what the server has of them are descriptors (pipes, sockets) and ids. Counters it reads
itself: they are everybody's to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection
from typing import Any

from faas.background import Background
from faas.errors import Conflict, FaasError, Unavailable
from faas.metrics import Metrics
from faas.oci.manifest import ImageConfig
from faas.oci.source import ImageSource
from worker.drivers.base import Exit, Lend, PreparedImage, Sandbox, SandboxSpec, SandboxState, SandboxStats
from worker.drivers.linux.cgroups import counters_at, thawing_at
from worker.drivers.oci.process import STREAM_BYTES
from worker.drivers.oci.sandbox_groups import FREEZE_GRACE_SECONDS
from worker.launcher import images, requests
from worker.launcher.figures import counted
from worker.launcher.loans import Loans
from worker.launcher.peer import Peer
from worker.launcher.process import Launched
from worker.launcher.wire import MESSAGE_BYTES, Garbage, Message, close_all, sealed
from worker.pipe_end import PipeEnd
from worker.sandbox_spec import RUNTIME_API_PORT

log = logging.getLogger("worker.launcher")

CLOSE_SECONDS = 90.0  # the driver's own deadlines, one after the other, are below it
STEM = "stem"  # a sandbox's path
SPARE_SECONDS = 1.0  # between two questions for what stems use


class LaunchedSandbox:
    """Implements `worker.drivers.base.Sandbox`."""

    def __init__(self, sandbox_id: str, path: str, group: str, peer: Peer) -> None:
        self.id = sandbox_id
        self.path = path
        self.group = group
        self.state = SandboxState.CREATED
        self.is_under_way = False  # before `start` said so
        self.is_frozen = False
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._counters = counters_at(group)
        self.stdout, self.stderr = asyncio.StreamReader(STREAM_BYTES), asyncio.StreamReader(STREAM_BYTES)
        self._peer = peer
        self._is_closed = False
        self._thawing: list[int] = []
        self._transports: list[asyncio.ReadTransport] = []
        self._api: socket.socket | None = None  # listens already, as nearly every sandbox's server wants it to
        self._listeners: list[socket.socket] = []
        self._terminal: list[int] = []

    def take(self, descriptors: list[int], work: Background) -> None:
        """A listening socket, stdout and stderr. The pipes are connected in the background: a start need not wait for
        it."""
        listener, *outputs = descriptors
        self._api = _socket(listener)
        work.start(self._read(outputs), f"output of {self.id}")

    async def _read(self, outputs: list[int]) -> None:
        for reader, output in zip((self.stdout, self.stderr), outputs, strict=True):
            await self._connect(reader, output)

    async def _connect(self, reader: asyncio.StreamReader, output: int) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), PipeEnd(output))
        self._transports.append(transport)
        if self._is_closed:
            transport.close()

    async def listen(self, port: int) -> socket.socket:
        if port == RUNTIME_API_PORT and self._api is not None:
            listener, self._api = self._api, None
        else:
            _, descriptors = await self._peer.call("listen", id=self.id, port=port)
            listener = _socket(*descriptors)
        self._listeners.append(listener)
        return listener

    async def connect(self, port: int) -> socket.socket:
        _, descriptors = await self._peer.call("connect", id=self.id, port=port)
        return _socket(*descriptors)

    def begin(self) -> None:
        """It is about to run: a port that nobody listens on is its own."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def has_terminal(self, descriptors: list[int]) -> None:
        self._terminal = descriptors
        if self._is_closed:
            close_all(descriptors)

    def take_terminal(self) -> int:
        if not self._terminal:
            raise Conflict("it has no terminal to give")
        return self._terminal.pop()

    def ended(self, how: Exit) -> None:
        self.state = SandboxState.STOPPED
        if not self.exited.done():
            self.exited.set_result(how)

    def stats(self) -> SandboxStats:
        if self.is_frozen:
            with counters_at(self.group) as counters:
                return counters.read()
        return self._counters.read()

    def freeze(self, thawing: list[int]) -> None:
        """It stands still; `thawing` is the file that ends that, where it is there."""
        self._forget_thawing()
        self._thawing = thawing
        self._counters.release()  # of hundreds that stand still nobody needs the files

    def thaw(self) -> bool:
        """Whether it goes on, at once and without the launcher."""
        self.is_frozen = False
        if not self._thawing:
            return False
        try:
            for descriptor in self._thawing:
                os.write(descriptor, thawing_at(self.group)[1])
        except OSError as error:
            if error.errno != errno.ENODEV:  # it has ended
                raise
        finally:
            self._forget_thawing()
        return True

    def _forget_thawing(self) -> None:
        close_all(self._thawing)
        self._thawing = []

    def close(self) -> None:
        """Of what is ours: an open socket would keep the namespace, and with it the link, alive."""
        self._is_closed = True
        self.begin()
        self._forget_thawing()
        close_all(self._terminal)
        self._terminal = []
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.close()
        for transport in self._transports:
            transport.close()
        self._counters.close()


def _socket(descriptor: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)  # said, so that nobody has to ask
    made.setblocking(False)
    return made


class LaunchedDriver:
    """Implements `worker.drivers.base.Driver`. `on_lost` is called when the launcher ends before `close`."""

    name = "oci"
    freeze_grace_seconds = FREEZE_GRACE_SECONDS

    def __init__(self, launched: Launched, source: ImageSource, metrics: Metrics, on_lost: Callable[[], None]) -> None:
        self._launched = launched
        self._source = source
        self._metrics = metrics
        self._on_lost = on_lost
        self._sandboxes: dict[str, LaunchedSandbox] = {}
        self._coming: dict[str, Exit | None] = {}  # those that are being made, and how they have ended already
        self._work = Background()
        self._loans = Loans()
        self._spare_bytes = 0
        self._spare_asked = 0.0
        self._peer: Peer

    @property
    def lend(self) -> Lend:
        return self._loans.lend

    @lend.setter
    def lend(self, lend: Lend) -> None:
        self._loans.lend = lend

    async def open(self) -> None:
        verbs = {**images.verbs(self._source), **self._loans.verbs()}
        self._peer = Peer(self._launched.take(), verbs, self._lost, self._event)
        try:
            await self._peer.ask("open")
        except BaseException:
            await self._peer.close()
            raise

    async def close(self) -> None:
        if self._peer.is_open:
            self._on_lost = lambda: None
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._peer.ask("close")
            except (FaasError, TimeoutError) as error:
                log.error("the launcher did not close: %s", error)
        for sandbox in self._sandboxes.values():
            sandbox.close()
        self._sandboxes.clear()
        await self._work.cancel()
        await self._peer.close()
        await self._loans.close()
        await asyncio.to_thread(self._launched.wait)

    def _lost(self, why: str) -> None:
        log.critical("the launcher is lost: %s", why)
        self._on_lost()

    def _event(self, message: Message) -> None:
        if message["event"] == "figure":
            counted(self._metrics, message)
        elif message["event"] == "exited":
            how = Exit(message["code"], message["signal"], message["out_of_memory"])
            if message["id"] in self._coming:
                self._coming[message["id"]] = how
            if (sandbox := self._sandboxes.get(message["id"])) is not None:
                sandbox.ended(how)

    async def prepare(self, reference: str) -> PreparedImage:
        value, (descriptor,) = await self._peer.call("prepare", image=reference)
        try:
            config = ImageConfig.parse(sealed(descriptor, MESSAGE_BYTES))
        except Garbage as error:
            raise Unavailable(f"the launcher's answer cannot be read: {error}") from None
        finally:
            os.close(descriptor)
        return PreparedImage(reference, config, None, stays=True, warnings=tuple(value["warnings"]))

    async def collect(self, held: Collection[str]) -> int:
        return int(await self._peer.ask("collect", images=sorted(held)))

    async def create(self, spec: SandboxSpec, *, ahead: bool = False, at_once: bool = False) -> Sandbox:
        """A caller that is cancelled goes at once; what it asked for is deleted when it is there."""
        answer = self._peer.begin("create", ahead=ahead, at_once=at_once, **requests.written(spec))
        self._coming[spec.id] = None
        try:
            value, descriptors = await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda made: self._unwanted(made, spec.id))
            raise
        finally:
            ended = self._coming.pop(spec.id, None)
        held = self._sandboxes.get(spec.id)
        if not descriptors:  # what was made ahead
            assert held is not None
            held.path = value["path"]
            return held
        if held is not None:
            held.close()
        sandbox = self._sandboxes[spec.id] = LaunchedSandbox(spec.id, value["path"], value["group"], self._peer)
        sandbox.take(descriptors, self._work)
        if value["under_way"]:
            sandbox.is_under_way, sandbox.state = True, SandboxState.RUNNING
        if ended is not None:
            sandbox.ended(ended)
        return sandbox

    def _unwanted(self, made: asyncio.Future[tuple[Any, list[int]]], sandbox_id: str) -> None:
        if not made.cancelled() and made.exception() is None:
            close_all(made.result()[1])
            self._work.start(self.delete(sandbox_id), f"removal of {sandbox_id}")

    async def start(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, LaunchedSandbox)
        sandbox.begin()
        if sandbox.is_under_way:
            sandbox.is_under_way = False
            return
        if sandbox.path == STEM:  # it runs already: nothing can go wrong that its end does not tell
            self._peer.post("start", id=sandbox.id)
        else:
            sandbox.has_terminal((await self._peer.call("start", id=sandbox.id))[1])
        if sandbox.state is SandboxState.CREATED:  # it may have ended meanwhile
            sandbox.state = SandboxState.RUNNING

    async def kill(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, LaunchedSandbox)
        if sandbox.state is not SandboxState.STOPPED:
            await self._peer.ask("kill", id=sandbox.id)

    async def delete(self, sandbox_id: str) -> None:
        if not requests.ID.fullmatch(sandbox_id):  # nothing is called so
            return
        if (sandbox := self._sandboxes.get(sandbox_id)) is not None:
            sandbox.close()
        await self._peer.ask("delete", id=sandbox_id)
        if self._sandboxes.get(sandbox_id) is sandbox and sandbox is not None:
            del self._sandboxes[sandbox_id]
            sandbox.ended(Exit(128 + signal.SIGKILL, signal.SIGKILL))  # where its end was not told

    async def set_cpus(self, sandbox: Sandbox, cpus: float) -> None:
        """As soon as the launcher hears of it, which nobody waits for: what is asked afterwards is heard afterwards."""
        if self.state(sandbox) is not SandboxState.STOPPED:
            self._peer.post("set_cpus", id=sandbox.id, cpus=cpus)

    async def freeze(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, LaunchedSandbox)
        if self.state(sandbox) is not SandboxState.STOPPED:
            sandbox.is_frozen = True  # from here on: a caller who is cancelled thaws it
            sandbox.freeze((await self._peer.call("freeze", id=sandbox.id))[1])

    async def thaw(self, sandbox: Sandbox) -> None:
        assert isinstance(sandbox, LaunchedSandbox)
        if sandbox.is_frozen:
            if sandbox.thaw():
                self._peer.post("thaw", id=sandbox.id)  # which tells the launcher
            elif sandbox.state is not SandboxState.STOPPED:
                await self._peer.ask("thaw", id=sandbox.id)

    def spare_bytes(self) -> int:
        """As it was told last, about a second ago where this is asked often."""
        now = asyncio.get_running_loop().time()
        if now - self._spare_asked > SPARE_SECONDS and self._peer.is_open:
            self._spare_asked = now
            self._work.start(self._ask_spare_bytes(), "measuring stems")
        return self._spare_bytes

    async def _ask_spare_bytes(self) -> None:
        self._spare_bytes = int(await self._peer.ask("spare_bytes"))

    async def drop_spares(self) -> None:
        await self._peer.ask("drop_spares")
        await self._ask_spare_bytes()

    def state(self, sandbox: Sandbox) -> SandboxState:
        assert isinstance(sandbox, LaunchedSandbox)
        return sandbox.state

    async def ids(self) -> list[str]:
        found: list[Any] = await self._peer.ask("ids")
        return [str(sandbox_id) for sandbox_id in found]

    def stats(self, sandbox: Sandbox) -> SandboxStats:
        assert isinstance(sandbox, LaunchedSandbox)
        return sandbox.stats()
