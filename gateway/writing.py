"""`Writing`: what is counted in memory is written each second, and put in order each hour. A stop writes the last.

What cannot be written is kept by its owner and tried again; the log says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from faas.errors import FaasError

log = logging.getLogger("faas.writing")

WRITE_SECONDS = 1.0
TIDY_SECONDS = 3600.0

Step = Callable[[], Awaitable[None]]  # raises Unavailable where the database cannot


class Writing:
    """`what` is written, in the log's words."""

    def __init__(self, what: str, write: Step, tidy: Step) -> None:
        self._what = what
        self._write = write
        self._tidy = tidy
        self._closing = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        self._loop = asyncio.create_task(self._run(), name=f"writing of {self._what}")

    async def stop(self) -> None:
        """Write what is there. Called again, it writes what has come since."""
        self._closing.set()
        if self._loop is not None:
            await self._loop
            self._loop = None
        await self._try_to_write()

    async def _run(self) -> None:
        tidied: float | None = None
        while not self._closing.is_set():
            await self._try_to_write()
            if tidied is None or time.monotonic() - tidied > TIDY_SECONDS:
                tidied = time.monotonic()
                await self._try_to_tidy()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._closing.wait()

    async def _try_to_write(self) -> None:
        try:
            await self._write()
        except FaasError as error:
            if not self._failing:
                log.error("%s cannot be written yet, and is kept: %s", self._what, error.message)
            self._failing = True
        except Exception:
            log.exception("writing %s goes on", self._what)
        else:
            self._failing = False

    async def _try_to_tidy(self) -> None:
        try:
            await self._tidy()
        except FaasError as error:
            log.error("%s cannot be put in order yet: %s", self._what, error.message)
