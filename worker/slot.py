"""`Slot`: one slot of one instance for one invocation: the event's way in, why it failed, its report, the way back.

What a `PoolLease`, which waits, and a `PoolClaim`, which does not, have in common.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from faas.errors import BadFunctionResponse, FaasError, OutOfMemory, TimedOut, Unavailable
from faas.leases import Report
from faas.spec import Interface
from worker.exchange import EXIT_SECONDS, Exchange
from worker.http import HttpClient
from worker.http_connection import BrokenConnection
from worker.instance import Instance

if TYPE_CHECKING:
    from worker.revision_pool import RevisionPool

log = logging.getLogger("worker.slot")

_LAMBDA = Interface.LAMBDA
OFFERS = 3  # instances that may end before they take one event


def not_http() -> FaasError:
    return FaasError("a function of the Runtime API takes no HTTP requests")


class Slot:
    """`report` is set once the invocation has ended."""

    # Defaults of the class: one is made for each invocation, and most of them stay as they are.
    _instance: Instance
    _has_slot = False
    instance_id = ""
    interface = Interface.AUTO
    _failure: BaseException | None = None  # of an HTTP request: what its caller is told
    report: Report | None = None

    def __init__(self, pool: RevisionPool, request_id: str) -> None:
        self._pool = pool
        self._request_id = request_id

    def _holds(self, instance: Instance) -> None:
        self._instance = instance
        self._has_slot = True
        self.instance_id = instance.id
        self.interface = instance.interface

    async def _take(self, wait_seconds: float) -> None:
        """A slot, waited for, of an instance that does not stand still."""
        self._holds(await self._pool.take(wait_seconds))
        if self._instance.stands_still:
            await self._thaw(wait_seconds)

    async def _thaw(self, wait_seconds: float) -> None:
        """Have it go on; one that cannot is of no use, so another is taken."""
        for _ in range(OFFERS):
            try:
                await self._pool.parts.freezer.thaw(self._instance)
                return
            except Unavailable as error:
                log.warning("%s", error, extra={"instance": self._instance.id})
                self._pool.destroy(self._instance)
                self._give_back()
            except BaseException:
                self._give_back()
                raise
            self._holds(await self._pool.take(wait_seconds))
        self._give_back()
        raise Unavailable("one instance after the other could not be thawed")

    def _give_back(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._pool.release(self._instance)

    # Runtime API functions

    def _offer(self, exchange: Exchange) -> None:
        """Hand its event to the instance; `exchange` tells what became of it."""
        instance = self._instance
        if instance.api is None or instance.interface is not _LAMBDA:
            raise FaasError("an http function takes no events by the Runtime API")
        instance.exchange = exchange
        if instance.outcome is None:
            instance.api.offer(exchange)
        else:
            instance.fail_open()

    def _handed(self, exchange: Exchange) -> None:
        self._instance.begin(self._request_id, exchange.handed_at)

    def _event_ended(self, exchange: Exchange) -> None:
        """The answer, or what came instead of it; called before whoever waits gets it."""
        instance, error = self._instance, exchange.error
        if error is None and exchange.result is not None and exchange.result.error_type is None:  # as nearly always
            self._account(exchange.ended_at - exchange.handed_at, None, None)
            return
        if not exchange.deliveries and isinstance(error, TimedOut):
            instance.begin(self._request_id, exchange.handed_at)  # it never came for its event: one too
        if exchange.deliveries or isinstance(error, TimedOut):
            error_type = exchange.result.error_type if exchange.result is not None else None
            failed = (error is not None or error_type) and not isinstance(error, TimedOut)
            if failed and instance.outcome is None and instance.had_oom_kill():
                exchange.result, exchange.error = None, instance.out_of_memory()
                error = exchange.error
            self._account(exchange.ended_at - exchange.handed_at, error, error_type)
        if isinstance(error, TimedOut | OutOfMemory):
            self._pool.destroy(instance)

    # Http functions

    def _http_client(self) -> HttpClient:
        instance = self._instance
        if instance.http is None:
            raise not_http()
        return instance.http

    async def _translated(self, error: BaseException) -> BaseException:
        """What a caller is told of `error`; remembered for the report."""
        instance = self._instance
        if self._failure is None:
            if isinstance(error, BrokenConnection):
                error = await self._why_broken(instance, error)
            self._failure = error
        return self._failure

    async def _why_broken(self, instance: Instance, broken: BrokenConnection) -> BaseException:
        if instance.sandbox is not None and instance.outcome is None:
            await asyncio.wait([instance.sandbox.exited], timeout=EXIT_SECONDS)
        if instance.outcome is not None:
            return instance.exit_error()
        if instance.had_oom_kill():
            self._pool.destroy(instance)
            return instance.out_of_memory()
        if broken.no_listener:
            self._pool.destroy(instance)  # it lives, but serves no more
        return BadFunctionResponse(f"the function {broken.reason}")

    # Both

    def _account(self, seconds: float, error: BaseException | None, error_type: str | None) -> None:
        pool, instance = self._pool, self._instance
        self.report = report = instance.end(self._request_id, seconds, error, error_type)
        if error is None:
            pool.backoff.succeeded()
        pool.consumption.add_one(report)
