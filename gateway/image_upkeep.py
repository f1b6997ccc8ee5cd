"""`ImageUpkeep`: says to the worker, once an hour, which images are needed; what it unpacked of others goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from faas.background import Background
from faas.errors import FaasError
from faas.protocol import Worker

log = logging.getLogger("faas.image_upkeep")

PERIOD_SECONDS = 3600.0


class ImageUpkeep:
    """`held` names the images (`repository@digest`) that somebody needs; where it fails, nothing is removed."""

    def __init__(self, worker: Worker, held: Callable[[], Awaitable[Mapping[str, object]]]) -> None:
        self._worker = worker
        self._held = held
        self._background = Background()

    async def start(self) -> None:
        self._background.start(self._run(), "image upkeep")

    async def stop(self) -> None:
        await self._background.cancel()

    async def look(self) -> int:
        """Bytes that were freed. Raises FaasError."""
        return await self._worker.collect(set(await self._held()))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                if freed := await self.look():
                    log.info("%d MB of images that nothing needs any more were removed", freed >> 20)
            except (FaasError, OSError) as error:
                log.warning("images that nothing needs stay for now: %s", error)
            except Exception:
                log.exception("images that nothing needs stay for now")
