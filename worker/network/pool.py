"""Namespaces made ahead, so that a start does not wait for one: bare ones, and ones with a way out."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from faas.errors import FaasError
from faas.spec import Network
from worker.network import shaping
from worker.network.egress import INSIDE, Egress
from worker.network.namespace import new_namespace, socket_in

log = logging.getLogger("worker.network")

READY = 4  # namespaces of each kind kept ready
USUAL_MEMORY_BYTES = 128 << 20  # of an instance: the least, and the default of `memory`
PATIENCE_SECONDS = 0.1  # before one is made ahead: whoever took the last is starting an instance on the same cores


class NetworkNamespace:
    """A namespace for one instance; never used twice. `number` is its address in the egress subnet, 0 for none; `link`
    the host's end of its link, which sends and takes `bits` per second (0: no limit)."""

    __slots__ = ("_descriptor", "bits", "link", "number")

    def __init__(self, descriptor: int, number: int = 0, link: str = "", bits: int = 0) -> None:
        self._descriptor = descriptor
        self.number = number
        self.link = link
        self.bits = bits

    @property
    def descriptor(self) -> int:
        """Raises OSError once it is closed: the number may be another instance's by then."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the instance's network is gone")
        return self._descriptor

    def close(self) -> None:
        """No error where it is closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def path(self) -> str:
        """A path that another process of root can open, for a runtime's configuration."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"


class NamespacePool:
    """Gives namespaces and makes new ones in the background. Blocking work runs in `threads`.

    An instance gets `mbit_per_cpu` × its memory / 1769 MB as its bandwidth, each way; 0: as much as there is.
    """

    def __init__(self, egress: Egress, threads: ThreadPoolExecutor, mbit_per_cpu: int = 0) -> None:
        self._egress = egress
        self._threads = threads
        self._mbit_per_cpu = mbit_per_cpu
        self._ready: dict[Network, deque[NetworkNamespace]] = {kind: deque() for kind in Network}
        self._making: dict[Network, asyncio.Task[None]] = {}
        self._closed = False

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._egress.open)
        if self._mbit_per_cpu and (missing := await loop.run_in_executor(self._threads, shaping.missing)):
            log.warning("instances have all the bandwidth there is: %s", missing)
            self._mbit_per_cpu = 0
        for kind in Network:
            self._refill(kind)

    def ready(self, kind: Network) -> NetworkNamespace | None:
        """One that was made ahead, and another one will be; None where there is none."""
        ready = self._ready[kind]
        try:
            return ready.popleft() if ready else None
        finally:
            self._refill(kind)

    @property
    def is_current(self) -> bool:
        """Whether `adapt` would be quick: the firewall lets through to the name servers of this moment."""
        return self._egress.follows_resolver

    def adapt(self, namespace: NetworkNamespace, memory_bytes: int) -> None:
        """Blocking, but nearly always only a stat. What a start has to see to: the firewall lets through to the name
        servers that instances are told now, and the bandwidth is that of its memory. Raises OSError, Unavailable.
        """
        if namespace.link:
            self._egress.follow_resolver()
            self._shape(namespace, memory_bytes)

    def _shape(self, namespace: NetworkNamespace, memory_bytes: int) -> None:
        """0.1 ms, and nothing for the usual memory."""
        bits = shaping.share(memory_bytes, self._mbit_per_cpu)
        if bits != namespace.bits:
            shaping.limit(namespace.link, bits)
            socket_in(namespace.descriptor, lambda: shaping.limit(INSIDE, bits))
            namespace.bits = bits

    async def discard(self, namespace: NetworkNamespace) -> None:
        """Close it; with the last process gone, its interfaces vanish too, and its address is free again."""
        namespace.close()
        if namespace.number:
            self._egress.give_back(namespace.number)

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*self._making.values())
        for ready in self._ready.values():
            while ready:
                await self.discard(ready.popleft())
        await asyncio.get_running_loop().run_in_executor(self._threads, self._egress.close)

    def _refill(self, kind: Network) -> None:
        if self._closed or kind in self._making or len(self._ready[kind]) >= READY:
            return

        async def fill() -> None:
            try:
                if self._ready[kind]:
                    await asyncio.sleep(PATIENCE_SECONDS)
                while len(self._ready[kind]) < READY and not self._closed:
                    self._ready[kind].append(await self._made(kind))
            except (FaasError, OSError) as error:
                log.warning("cannot make a network namespace ahead: %s", error)

        task = asyncio.create_task(fill())
        self._making[kind] = task
        task.add_done_callback(lambda _: self._making.pop(kind, None))

    async def _made(self, kind: Network) -> NetworkNamespace:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.make, kind)

    def make(self, kind: Network) -> NetworkNamespace:
        """Blocking: 2 ms with a link. Raises Unavailable, OSError."""
        if kind is Network.NONE:
            return NetworkNamespace(new_namespace())
        number, name = self._egress.take(), self._egress.link_name()
        try:
            made = NetworkNamespace(new_namespace(lambda: self._egress.link_inside(number, name)), number, name)
            try:
                self._egress.link_outside(number, name)
                self._shape(made, USUAL_MEMORY_BYTES)
            except BaseException:
                made.close()
                raise
        except BaseException:
            self._egress.give_back(number)
            raise
        return made
