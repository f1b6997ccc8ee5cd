"""`Supplies`: what a sandbox has of this machine for itself: a network namespace, ids, disk space. Some of each is made
ahead; all is given back at its end."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.drivers.base import DriverPaths
from worker.drivers.oci.identities import Identities
from worker.drivers.oci.sandbox import OciSandbox
from worker.drivers.oci.scratch import ScratchPool
from worker.network.egress import Egress
from worker.network.pool import NamespacePool


class Supplies:
    """Below `run`; blocking work runs in `threads`."""

    def __init__(
        self,
        paths: DriverPaths,
        run: Path,
        threads: ThreadPoolExecutor,
        egress: Egress,
        *,
        bandwidth: int,
        user_namespaces: bool,
    ) -> None:
        self.egress = egress
        self.namespaces = NamespacePool(egress, threads, bandwidth)
        self.identities = Identities(
            paths.server_id, paths.data / "layers", run / "ids", threads, namespaces=user_namespaces
        )
        self.scratch = ScratchPool(paths.data / "scratch", run / "scratch", threads)

    def open(self, program: str) -> None:
        """Blocking."""
        self.scratch.open()
        self.identities.open(program)

    async def make_ahead(self) -> None:
        await self.namespaces.open()
        self.identities.make_ahead()

    def take(self, sandbox: OciSandbox) -> None:
        """What is ready; the rest is to be made. Raises Unavailable."""
        spec = sandbox.spec
        sandbox.namespace = self.namespaces.ready(spec.network)
        sandbox.identity = self.identities.take(spec.user, spec.writable_root)
        if spec.tmp_bytes:
            sandbox.scratch = self.scratch.ready(spec.tmp_bytes)

    def make(self, sandbox: OciSandbox) -> None:
        """Blocking. What was not ready, in this one thread: each way to another one and back takes 0.2 ms. Raises
        OSError, Unavailable."""
        spec = sandbox.spec
        assert sandbox.identity is not None
        self.identities.show(sandbox.identity)
        if sandbox.namespace is None:
            sandbox.namespace = self.namespaces.make(spec.network)
        if spec.tmp_bytes and sandbox.scratch is None:
            sandbox.scratch = self.scratch.make(spec.tmp_bytes)

    async def give_back(self, sandbox: OciSandbox) -> None:
        """When nothing of it runs any more. Whatever one step meets, the others are taken."""
        async with contextlib.AsyncExitStack() as stack:  # from the last one to the first
            if sandbox.namespace is not None:
                stack.push_async_callback(self.namespaces.discard, sandbox.namespace)
            if sandbox.identity is not None:
                stack.push_async_callback(self.identities.discard, sandbox.identity)
            if sandbox.scratch is not None:
                stack.push_async_callback(self.scratch.discard, sandbox.scratch)
