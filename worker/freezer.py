"""`Freezer`: idle instances stand still, so that no work goes on unbilled and what they have is all they can have.

An instance of the Runtime API is frozen when it has been idle for the driver's grace, and thawed by whoever claims it,
before it is given the event. Instances of http functions are not: they may have connections of their own open, and
several callers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from faas.background import Background
from faas.errors import FaasError, Unavailable
from faas.spec import Interface
from worker.drivers.base import Driver, Sandbox
from worker.instance import IDLE, Instance

log = logging.getLogger("worker.freezer")

POLL_SECONDS = 0.1  # so long at most a runtime that has answered may take to ask for the next event
FREEZE_SECONDS = 15.0  # the driver's own wait ends before
THAW_SECONDS = 5.0
AT_ONCE = 8
_LAMBDA = Interface.LAMBDA

Frozen = Callable[[Instance], None]


class Freezer:
    """One timer for all, and none while nothing is idle."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._grace = driver.freeze_grace_seconds
        self._idle: dict[Instance, Frozen] = {}  # not frozen yet: the longest idle first
        self._timer: asyncio.TimerHandle | None = None
        self._work = Background()
        self._has_failed = False

    async def close(self) -> None:
        self._idle.clear()
        if self._timer is not None:
            self._timer.cancel()
        await self._work.cancel()

    @staticmethod
    def freezes(instance: Instance) -> bool:
        """Whether it is frozen when it is idle for long enough."""
        return instance.interface is _LAMBDA and instance.can_freeze

    def add(self, instance: Instance, frozen: Frozen) -> None:
        """It is idle. `frozen` is called if it is so for long enough, and stands still. On each invocation's way out,
        so it costs an entry of a dict."""
        if self.freezes(instance):
            self._idle[instance] = frozen
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._grace, self._round)

    def discard(self, instance: Instance) -> None:
        """It is claimed, or being ended."""
        self._idle.pop(instance, None)

    def hurry(self) -> None:
        """Somebody waits for the memory of what is idle: its grace is over."""
        if self._idle:
            for instance in self._idle:
                instance.grace_is_over = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(0, self._round)

    def _round(self) -> None:
        self._timer = None
        now = time.monotonic()
        for instance, frozen in list(self._idle.items()):
            idle = now - instance.idle_since
            if idle < self._grace and not instance.grace_is_over:
                break  # and those behind it are idle for less
            if len(self._work) >= AT_ONCE:
                break
            if instance.is_asking or idle >= POLL_SECONDS:
                del self._idle[instance]
                instance.freezing = self._work.start(self._freeze(instance, frozen), f"freezing {instance.id}")
        if self._idle:
            self._timer = asyncio.get_running_loop().call_later(self._grace, self._round)

    async def _freeze(self, instance: Instance, frozen: Frozen) -> None:
        sandbox = instance.sandbox
        try:
            if instance.state is not IDLE or instance.outcome is not None or sandbox is None:
                return  # claimed, or ended, before this began
            async with asyncio.timeout(FREEZE_SECONDS):
                await self._driver.freeze(sandbox)
            instance.is_frozen, instance.is_thawing = True, False
        except asyncio.CancelledError:
            instance.is_thawing = True  # it may still come to stand still, by what the driver has sent already
            raise
        except Exception as error:
            self._failed(instance, error)
            assert sandbox is not None
            await self._let_go(sandbox)
        finally:
            instance.freezing = None
        frozen(instance)

    def _failed(self, instance: Instance, error: Exception) -> None:
        """It is simply not frozen, now and later: said once, for there may be thousands."""
        instance.can_freeze = False
        level = logging.DEBUG if self._has_failed else logging.WARNING
        self._has_failed = True
        log.log(level, "an idle instance is not frozen: %r", error, extra={"instance": instance.id})

    async def thaw(self, instance: Instance) -> None:
        """Let a claimed instance go on, at once too where it was just being frozen: a busy machine may take seconds
        for that. Raises Unavailable: then it is of no use any more."""
        if (freezing := instance.freezing) is not None:
            freezing.cancel()
            await asyncio.wait([freezing])
            instance.freezing = None  # one that has not begun ends without a word
        if instance.is_frozen or instance.is_thawing:
            instance.is_frozen, instance.is_thawing = False, True
            assert instance.sandbox is not None
            try:
                async with asyncio.timeout(THAW_SECONDS):
                    await self._driver.thaw(instance.sandbox)
            except (FaasError, OSError, TimeoutError) as error:
                raise Unavailable(f"an idle instance could not be thawed: {error!r}") from None
            instance.is_thawing = False

    async def _let_go(self, sandbox: Sandbox) -> None:
        try:
            async with asyncio.timeout(THAW_SECONDS):
                await self._driver.thaw(sandbox)
        except Exception as error:
            log.warning("an instance may stand still: %r", error, extra={"instance": sandbox.id})
