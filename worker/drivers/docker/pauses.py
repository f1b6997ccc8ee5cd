"""`Pauses`: containers that hold a network namespace each and wait, so that the server can listen in there before a
function's container joins it.

An engine takes three times as long to make one as to start a function in it. So a few are kept ready for each kind of
network: made in the background when nothing starts, used once, never given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from faas.background import Background
from faas.errors import FaasError
from faas.spec import Network
from worker.drivers.docker.containers import pause_container
from worker.drivers.docker.engine import Engine, ImageGone
from worker.drivers.docker.image import pause_image
from worker.memory.meminfo import is_short
from worker.network.bridge import isolate_ports

log = logging.getLogger("worker.drivers.docker")

MARK = "faas.pause"
HOSTNAME = "function"  # what the ready ones have
PATIENCE_SECONDS = 0.3  # before one is made, and again while anything is being made, started or removed
BACKOFF_MOST_SECONDS = 60.0
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Pause:
    """One that runs. `namespace` is a descriptor; `memory_bytes` what it and its keeper (a shim, a monitor) have for
    themselves, measured once."""

    container: str
    mark: str
    pid: int
    namespace: int
    memory_bytes: int

    def alive(self) -> bool:
        """Asked of the kernel: its process is still the one in that namespace."""
        try:
            return (PROC / str(self.pid) / "ns" / "net").stat().st_ino == os.fstat(self.namespace).st_ino
        except OSError:
            return False

    def close(self) -> None:
        os.close(self.namespace)


class Pauses:
    """`most` ready ones per kind of network, once that was needed. What is taken is the taker's, until `release`."""

    def __init__(self, engine: Engine, most: int, networks: Mapping[Network, str], quiet: Callable[[], bool]) -> None:
        self._engine = engine
        self._most = most
        self._networks = networks
        self._quiet = quiet  # nothing is being made, started or removed
        self._wanted: list[Network] = []
        self._ready: dict[Network, deque[Pause]] = {network: deque() for network in Network}
        self._marks: set[str] = set()  # of all that exist, or are being made, and have an owner
        self._failures = 0  # in a row
        self._generation = 0  # of those that are made ahead: `drop` ends one
        self._is_open = False
        self._filling: asyncio.Task[None] | None = None
        self._work = Background()

    def open(self) -> None:
        """Most functions have a network: their first start finds one, too."""
        self._is_open = True
        self._need(Network.OUTBOUND)

    async def close(self, seconds: float) -> None:
        """None in the making any more, or `seconds` are over; their containers are the engine's sweep's."""
        self._is_open = False
        if self._filling is not None:
            self._filling.cancel()  # what it is making comes to its end
        await self._work.finish(seconds)
        for pause in self._all():
            pause.close()
        self._forget_ready()

    def known(self) -> list[str]:
        """Containers whose end is to be told to `died`. From any thread."""
        return [pause.container for pause in self._all()]

    def spare_bytes(self) -> int:
        return sum(pause.memory_bytes for pause in self._all())

    async def drop(self) -> None:
        """End those that are ready. They come back after the next need."""
        self._generation += 1
        pauses = self._all()
        self._forget_ready()
        self._wanted.clear()
        await asyncio.gather(*map(self._remove, pauses))

    # Giving

    async def take(self, network: Network, hostname: str, *, ahead: bool = False) -> Pause:
        """A ready one; else, or where nobody waits for it (`ahead`), one that is made now. Raises what the engine
        raises."""
        ready = self._ready[network] if hostname == HOSTNAME and not ahead else deque()
        try:
            while ready:
                if (pause := ready.popleft()).alive():
                    return pause
                self._throw(pause)
            return await self._engine.call(lambda: self._make(network, hostname))
        finally:
            self._need(network)

    def release(self, pause: Pause) -> None:
        """Its taker has removed the container, or leaves that to the next look."""
        pause.close()
        self._marks.discard(pause.mark)

    async def _remove(self, pause: Pause) -> None:
        """Raises nothing: what the engine did not remove is removed when it answers again."""
        self.release(pause)
        with contextlib.suppress(FaasError), self._engine.errors("remove a container"):
            await self._engine.call(lambda: self._engine.remove(pause.container))

    def died(self, container: str) -> None:
        """It ended while it waited: it is replaced."""
        for ready in self._ready.values():
            for pause in ready:
                if pause.container == container:
                    ready.remove(pause)
                    self._failed("it ended while it waited")
                    self._throw(pause)
                    self._fill_up()
                    return

    def back(self) -> None:
        """The engine was gone, and as a rule all that ran with it."""
        for ready in self._ready.values():
            for pause in [pause for pause in ready if not pause.alive()]:
                ready.remove(pause)
                self._throw(pause)
        self._work.start(self._tidy(), "removal of pause containers that nobody has")
        self._fill_up()

    # Making

    def _need(self, network: Network) -> None:
        if network not in self._wanted:
            self._wanted.append(network)
        self._fill_up()

    def _fill_up(self) -> None:
        if self._is_open and self._filling is None and self._lacking() is not None:
            self._filling = self._work.start(self._fill(), "pause containers")

    def _lacking(self) -> Network | None:
        return next((network for network in self._wanted if len(self._ready[network]) < self._most), None)

    async def _fill(self) -> None:
        try:
            while self._is_open and self._lacking() is not None:
                await asyncio.sleep(min(BACKOFF_MOST_SECONDS, PATIENCE_SECONDS * 4**self._failures))
                if not self._quiet():
                    continue
                if is_short():
                    return
                if (network := self._lacking()) is not None:
                    await self._work.complete(self._put(network), "a pause container")
        finally:
            self._filling = None

    async def _put(self, network: Network) -> None:
        """One more on the shelf."""
        generation = self._generation
        if self._failures:
            await self._tidy()
        try:
            with self._engine.errors("keep a container ready"):
                pause = await self._engine.call(lambda: self._make(network, HOSTNAME))
        except FaasError as error:
            self._failed(str(error))
            return
        self._failures = 0
        if self._is_open and generation == self._generation:
            self._ready[network].append(pause)
        else:
            await self._remove(pause)

    def _make(self, network: Network, hostname: str) -> Pause:
        """Blocking. By its mark it is found and removed where the engine's answer was lost."""
        mark, engine = secrets.token_hex(8), self._engine
        tag, image = pause_image()
        labels, network_name = {**engine.labels, MARK: mark}, self._networks[network]
        wanted = pause_container(engine.api, tag, hostname, network_name, labels, processes=engine.processes)
        self._marks.add(mark)
        try:
            try:
                container = engine.create(wanted)
            except ImageGone:
                engine.ensure_image(tag, image)
                container = engine.create(wanted)
            pid = engine.start(container)
            if network is Network.OUTBOUND:
                isolate_ports(self._networks[network])  # nothing runs in there yet
            namespace = os.open(PROC / str(pid) / "ns" / "net", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self._marks.discard(mark)
            with contextlib.suppress(FaasError), engine.errors("remove a container"):
                for row in engine.containers(f"{MARK}={mark}"):
                    engine.remove(row["Id"])
            raise
        return Pause(container, mark, pid, namespace, _memory(pid))

    async def _tidy(self) -> None:
        """Remove those that nobody has: what the engine was asked for, and it did not hear or did not answer."""

        def remove() -> None:
            for row in self._engine.containers(MARK):
                if row["Labels"].get(MARK) not in self._marks:
                    self._engine.remove(row["Id"])

        with contextlib.suppress(FaasError), self._engine.errors("list its containers"):
            await self._engine.call(remove)

    def _failed(self, why: str) -> None:
        self._failures += 1
        log.warning("no container could be kept ready, so the next start takes longer: %s", why)

    def _throw(self, pause: Pause) -> None:
        self._work.start(self._remove(pause), "removal of a pause container")

    def _all(self) -> list[Pause]:
        return [pause for ready in self._ready.values() for pause in tuple(ready)]

    def _forget_ready(self) -> None:
        for ready in self._ready.values():
            ready.clear()


def _memory(pid: int) -> int:
    """Anonymous memory of a process and of its parent, which is there for it alone; 0 where it has ended."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        return sum(_anonymous(number) for number in (pid, int(_field(pid, "PPid"))) if number > 1)
    return 0


def _anonymous(pid: int) -> int:
    return int(_field(pid, "RssAnon").split()[0]) * 1024


def _field(pid: int, name: str) -> str:
    rows = (PROC / str(pid) / "status").read_text().splitlines()
    return next(row.partition(":")[2].strip() for row in rows if row.startswith(f"{name}:"))
