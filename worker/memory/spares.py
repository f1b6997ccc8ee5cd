"""`Spares`: what the driver keeps ready for nobody yet (stems, pauses), on the ledger's account: the first to go."""

from __future__ import annotations

import asyncio
import logging

from faas.background import Background
from faas.protocol import Kind
from worker.drivers.base import Driver
from worker.memory.charge import Charge
from worker.memory.ledger import Ledger

log = logging.getLogger("worker.spares")

LOOK_SECONDS = 1.0
DROP_SECONDS = 30.0
START_SECONDS = 0.1  # what one is worth: the start that it saves


class Spares:
    """One charge for all of them, brought up to date each second and whenever asked. What has no room, goes."""

    def __init__(self, driver: Driver, ledger: Ledger) -> None:
        self._driver = driver
        self._ledger = ledger
        self._charge: Charge | None = None
        self._dropping: asyncio.Task[None] | None = None
        self._work = Background()

    def open(self) -> None:
        self._work.start(self._run(), "spares")

    async def close(self) -> None:
        """The driver ends them."""
        await self._work.cancel()
        if self._charge is not None:
            self._charge.release()

    async def _run(self) -> None:
        while True:
            self.update()
            await asyncio.sleep(LOOK_SECONDS)

    def update(self) -> None:
        """Charge what they have now; have them dropped where that is not free, or somebody waits for it."""
        if self._dropping is not None:
            return
        size = self._driver.spare_bytes()
        charge = self._charge
        if charge is None:
            if not size:
                return
            charge = self._charge = self._ledger.try_charge(Kind.STEM, size)
            if charge is None:
                self._drop()
                return
            charge.may_be_evicted(self._drop, START_SECONDS)
            charge.rest()
        elif not size:
            self._charge = None
            charge.release()
        elif size < charge.size:
            charge.shrink(size)
        elif not charge.try_grow(size):
            charge.leave()
            self._drop()

    def _drop(self) -> None:
        self._dropping = self._work.start(self._dropped(), "dropping spares")

    async def _dropped(self) -> None:
        try:
            async with asyncio.timeout(DROP_SECONDS):
                await self._driver.drop_spares()
        except Exception as error:
            log.warning("what is spare could not be dropped: %r", error)
        finally:
            self._dropping = None
            if (charge := self._charge) is not None:
                self._charge = None
                charge.release()
