"""`Periodic`: a step that is taken again and again. Where it fails, that is logged, and it is tried again in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from faas.errors import FaasError

log = logging.getLogger("faas.periodic")


class Periodic:
    """`start`ed once, `stop`ped once. `step` raises FaasError where it cannot. `first`: when it is taken first, in
    seconds: a server that is restarted often must come to it, too."""

    def __init__(
        self, what: str, seconds: float, step: Callable[[], Awaitable[None]], *, first: float | None = None
    ) -> None:
        self._what = what
        self._seconds = seconds
        self._first = seconds if first is None else first
        self._step = step
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name=self._what)

    async def stop(self, *, once_more: bool = False) -> None:
        """`once_more`: take the step a last time."""
        self._closing.set()
        if self._loop is not None:
            await self._loop
            self._loop = None
        if once_more:
            await self._taken()

    async def _run(self) -> None:
        wait = self._first
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._closing.wait()
                    return
            await self._taken()
            wait = self._seconds

    async def _taken(self) -> None:
        try:
            await self._step()
        except FaasError as error:
            log.error("%s: not yet, it is tried again: %s", self._what, error.message)
        except Exception:
            log.exception("%s: it is tried again", self._what)
