"""`Janitor`: takes instances away, whole, and looks for sandboxes that belong to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from faas.background import Background
from worker.drivers.base import Driver, Sandbox
from worker.instance import Instance
from worker.output import Output
from worker.sandbox_spec import INIT_CPUS

log = logging.getLogger("worker.janitor")

KILL_SECONDS = 10.0
DELETE_SECONDS = 60.0
ATTEMPTS = 3
RETRY_SECONDS = 1.0
AT_ONCE = 8
LAST_WORDS_SECONDS = 0.5  # for what an instance wrote before its end; a process left behind may hold the pipe open
SWEEP_SECONDS = 60.0


class Janitor:
    """Removal goes on in the background; `close` waits for it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._work = Background()
        self._loops = Background()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._known: dict[str, None] = {}  # from before the sandbox is made until it is gone
        self._suspects: set[str] = set()

    def open(self) -> None:
        self._loops.start(self._run(), "janitor")

    async def close(self, seconds: float) -> None:
        await self._loops.cancel()
        await self._work.finish(seconds)

    def know(self, instance_id: str) -> None:
        """This id is in use: no orphan."""
        self._known[instance_id] = None

    def remove(self, instance: Instance, gone: Callable[[], None]) -> None:
        """Kill and delete `instance`, which is STOPPING; `gone` is called when nothing of it is left."""
        if instance.charge is not None:
            instance.charge.leave()
        self._work.start(self._remove(instance, gone), f"removal of {instance.id}")

    async def discard(self, sandbox_id: str, sandbox: Sandbox | None = None, output: Output | None = None) -> None:
        """End a sandbox that is no function's instance, whole; None: it was not made, or wrote nothing."""
        if sandbox is not None:
            await self._kill(sandbox)
        if output is not None:
            if sandbox is not None:
                await output.drained(LAST_WORDS_SECONDS)
            await output.close()
        await self._delete(sandbox_id)
        self._known.pop(sandbox_id, None)

    async def _remove(self, instance: Instance, gone: Callable[[], None]) -> None:
        try:
            if instance.sandbox is not None:
                await self._kill(instance.sandbox)
                await instance.output.drained(LAST_WORDS_SECONDS)
        finally:
            instance.settle()
            await instance.output.close()
            if instance.http is not None:
                instance.http.close()
            if instance.api is not None:
                instance.api.close()
            instance.died()
            if instance.charge is not None and (instance.sandbox is None or instance.sandbox.exited.done()):
                instance.charge.release()
            gone()
        await self._delete(instance.id)
        if instance.charge is not None:
            instance.charge.release()  # late, where it did not die of the kill
        self._known.pop(instance.id, None)

    async def _kill(self, sandbox: Sandbox) -> None:
        try:
            async with asyncio.timeout(KILL_SECONDS):
                with contextlib.suppress(OSError):  # it may have gone by itself
                    # Dying costs CPU as well: 256 processes of a fork bomb take minutes to end on a small share.
                    await self._driver.set_cpus(sandbox, INIT_CPUS)
                await self._driver.kill(sandbox)
        except Exception as error:  # deleting kills again
            log.warning("cannot kill an instance: %r", error, extra={"instance": sandbox.id})

    async def _delete(self, sandbox_id: str) -> None:
        for attempt in range(ATTEMPTS):
            try:
                async with self._at_once, asyncio.timeout(DELETE_SECONDS):
                    await self._driver.delete(sandbox_id)
                return
            except Exception as error:
                log.warning("cannot remove an instance: %r", error, extra={"instance": sandbox_id})
                await asyncio.sleep(RETRY_SECONDS * (attempt + 1))
        log.error("an instance stays behind; the sweep tries again", extra={"instance": sandbox_id})

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:
                log.exception("the sweep failed")

    async def sweep(self) -> None:
        """Delete sandboxes that nobody knows, seen so twice in a row: one may just be on its way in or out."""
        strangers = set(await self._driver.ids()) - self._known.keys()
        for sandbox_id in strangers & self._suspects:
            log.warning("removing an orphaned instance", extra={"instance": sandbox_id})
            await self._delete(sandbox_id)
        self._suspects = strangers
