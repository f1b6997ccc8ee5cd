"""Finds out which contract a container speaks, where a deploy did not (`faas push --no-check`): once, at first use."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable

from faas.errors import FaasError, Unavailable
from faas.protocol import Revision, RevisionKey, Worker
from faas.spec import Interface
from faas.state.session import Database
from gateway.router import Route, Router
from gateway.store import revisions

log = logging.getLogger("faas.discovery")

PREPARE_SECONDS = 300.0  # an image of some GB, unpacked for the first time

Found = Callable[[Revision], Awaitable[None]]


class Discovery:
    """`found` is told each revision whose interface has become known, to store it."""

    def __init__(self, worker: Worker, router: Router, found: Found | None = None) -> None:
        self._worker = worker
        self._router = router
        self.found = found
        self._running: dict[RevisionKey, asyncio.Task[Revision]] = {}

    async def known(self, route: Route) -> Route:
        """`route` with its interface known. One check for all who ask at once. Raises InitFailed, ImageUnusable."""
        revision = route.revision
        if revision.interface is not Interface.AUTO:
            return route
        if (declared := revision.spec.declared_interface) is not Interface.AUTO:  # there is nothing to find out
            revision = dataclasses.replace(revision, interface=declared)
            self._router.revise(revision)
            return Route(revision, route.qualifier)
        task = self._running.get(revision.key)
        if task is None:
            task = self._running[revision.key] = asyncio.create_task(self._check(revision))
            task.add_done_callback(lambda done: self._done(revision.key, done))
        return Route(await asyncio.shield(task), route.qualifier)

    def _done(self, key: RevisionKey, task: asyncio.Task[Revision]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, even where every caller has gone

    async def _check(self, revision: Revision) -> Revision:
        try:
            async with asyncio.timeout(PREPARE_SECONDS + revision.spec.init_timeout):
                await self._worker.prepare(revision)
                report = await self._worker.check(revision)
        except TimeoutError:
            raise Unavailable("the function's image could not be made ready in time") from None
        found = dataclasses.replace(revision, interface=report.interface)
        self._router.revise(found)
        if self.found is not None:
            await self.found(found)
        return found

    async def close(self) -> None:
        for task in list(self._running.values()):
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)


async def store_interface(database: Database, revision: Revision) -> None:
    """Keep an interface that the first use of an unchecked revision has found out."""
    try:
        async with database.write() as tx:
            await revisions.found(tx, revision)
    except FaasError as error:  # the next start finds it out again
        log.warning("%s: %s", revision.key, error.message)
