"""`FailedDeploys`: each function's last deploy that failed, until one succeeds; also of one that never came to be."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from faas.background import Background
from faas.errors import FaasError, Forbidden, FunctionError, InitFailed, ShuttingDown, Unauthenticated
from faas.state.session import Database
from gateway.conditions import Deploy
from gateway.store import failed_deploys

log = logging.getLogger("faas.deploy")

MOST = 4096  # in memory; the oldest go first
MESSAGE_CHARACTERS, TAIL_CHARACTERS = 1000, 4000
NOT_THE_FUNCTIONS = (Unauthenticated, Forbidden, ShuttingDown)

T = TypeVar("T")


class FailedDeploys:
    """`start`ed once, `stop`ped once. `clock` gives Unix seconds."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._failed: OrderedDict[tuple[str, str], Deploy] = OrderedDict()
        self._work = Background()

    async def start(self) -> None:
        async with self._database.read() as tx:
            self._failed.update(await failed_deploys.every(tx))

    async def stop(self, grace_seconds: float) -> None:
        await self._work.finish(grace_seconds)

    def of(self, namespace: str, function: str, live: int = 0) -> Deploy | None:
        """The last one that failed; `live`: the number of the revision that is live now. One that was deployed since,
        by a push to a followed tag, makes it old."""
        failed = self._failed.get((namespace, function))
        return failed if failed is not None and (not live or live <= failed.live) else None

    async def noted(
        self,
        namespace: str,
        function: str,
        work: Coroutine[Any, Any, T],
        *,
        live: Callable[[], int],
        image: str,
        by: str,
        request_id: str,
    ) -> T:
        """Await a deploy and remember how it ended, also where its caller goes meanwhile. `live`: the number of the
        revision that is live, 0 where none is."""

        async def whole() -> T:
            try:
                done = await work
            except FaasError as error:
                if not isinstance(error, NOT_THE_FUNCTIONS):
                    failed = self._told(error, live(), image, by, request_id)
                    await self._remember(namespace, function, failed)
                raise
            await self._remember(namespace, function, None)
            return done

        return await self._work.complete(whole(), f"deploy of {function}")

    def _told(self, error: FaasError, live: int, image: str, by: str, request_id: str) -> Deploy:
        return Deploy(
            at=self._clock(),
            code=error.error_type if isinstance(error, FunctionError) else error.code,
            message=error.message[:MESSAGE_CHARACTERS],
            hint=error.hint[:MESSAGE_CHARACTERS],
            log_tail=error.log_tail[-TAIL_CHARACTERS:] if isinstance(error, InitFailed) else "",
            image=image,
            by=by,
            request_id=request_id,
            live=live,
        )

    async def _remember(self, namespace: str, function: str, failed: Deploy | None) -> None:
        """What is not written is known until the next start all the same: the deploy's own answer goes first."""
        where = (namespace, function)
        if failed is None and where not in self._failed:
            return
        self._failed.pop(where, None)
        if failed is not None:
            self._failed[where] = failed
            if len(self._failed) > MOST:
                self._failed.popitem(last=False)
        try:
            async with self._database.write() as tx:
                if failed is None:
                    await failed_deploys.remove(tx, namespace, function)
                else:
                    await failed_deploys.put(tx, namespace, function, failed)
        except FaasError as error:
            log.warning("a failed deploy could not be written down: %s", error, extra={"function": function})
