"""`RevisionPool`: the instances of one revision: how many there should be, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from faas.errors import FaasError, InitFailed, NotFound, ShuttingDown, Throttled
from faas.protocol import Revision, RevisionStats
from worker.backoff import Backoff
from worker.claim import PoolClaim
from worker.deadlines import Deadlines
from worker.instance import BUSY, IDLE, Instance
from worker.memory.charge import Charge
from worker.memory.revision_memory import RevisionMemory
from worker.metering import Consumption, count_start
from worker.parts import Parts
from worker.slots import Slots

log = logging.getLogger("worker.pool")


class RevisionPool(Slots):
    """An `Owner` of memory. `on_empty` is called when nothing is left of a revision that should have no instances."""

    def __init__(self, revision: Revision, parts: Parts, on_empty: Callable[[RevisionPool], None]) -> None:
        super().__init__(revision, parts)
        self.deadlines = Deadlines(revision.spec.timeout)
        self.consumption = Consumption(revision, parts.metrics, parts.reporting)
        self._on_empty = on_empty
        self._turns = asyncio.Semaphore(parts.at_once)
        self._queued: set[Instance] = set()  # of those that start: they have no sandbox yet
        self._checking: set[Instance] = set()
        self._launches: dict[Instance, asyncio.Task[None]] = {}
        self._memory = RevisionMemory(parts.ledger, self, revision.spec.memory_bytes, self.waiters.expire)
        self.backoff = Backoff(self._reconcile)  # launches that failed, and idle instances that died

    def claim(self, request_id: str) -> PoolClaim | None:
        """The slot of `try_take_ready`."""
        if self.passing is not None and (passed := self.pass_on()) is not None:
            return PoolClaim(self, passed, request_id)
        free = self._free
        if free and not self.waiters.queue and not self.retired:
            instance = next(reversed(free))
            executing, slots = instance.executing, instance.slots
            if 0 < executing < slots - 1 and instance.outcome is None:  # one more of several, and not the last
                instance.executing = executing + 1
                instance.invocations += 1
                return PoolClaim(self, instance, request_id)
            if slots == 1 and instance.outcome is None and not instance.stands_still:  # `_claim`, and no look twice
                del free[instance]
                self._busy += 1
                self.parts.freezer.discard(instance)
                instance.claim()
                return PoolClaim(self, instance, request_id)
        taken = self.try_take_ready()
        return None if taken is None else PoolClaim(self, taken, request_id)

    # How many

    def scale(self, desired: int) -> None:
        self.desired = desired
        if desired:
            self.retired = False
        self._reconcile()

    def retire(self) -> None:
        """Nothing new: waiting invocations are told, idle instances go, busy ones finish."""
        self.retired, self.desired = True, 0
        self.waiters.fail_all(NotFound(f"{self.revision.key} is gone"))
        self._reconcile()

    def _reconcile(self) -> None:
        """Bring what there is to what there should be: nearly always it is."""
        if self.desired and self.desired == len(self._ready) and not self._starting and not self._still:
            return
        self._forgo()
        surplus = len(self._starting) + len(self._ready) - self.desired
        if surplus < 0:
            self._start_missing(-surplus)
            return
        if surplus and not len(self.waiters):
            self._stop_surplus()
        if not (self.desired or self._ready or self._starting or len(self._leaving) or len(self.waiters)):
            self.backoff.cancel()
            self._on_empty(self)

    def _start_missing(self, missing: int) -> None:
        if self.backoff.pausing:
            # What fails again and again is retried slowly, but for whoever waits at once.
            missing = min(missing, max(0, self._needed - len(self._starting)))
            self.backoff.retry_later()
        for _ in range(missing):
            if len(self._starting) < self._wanted:
                self.start()
                continue
            # Nobody waits for this one: it takes memory that is free, and makes nobody else's instance go.
            if (charge := self._memory.charge_now()) is None:
                return
            self.start(charge)

    @property
    def _needed(self) -> int:
        """So many instances would serve all who wait."""
        return -(-len(self.waiters) // self.revision.spec.concurrency)

    @property
    def _wanted(self) -> int:
        """So many of the starting ones are worth others' idle ones: for who waits, where none is left that stands still
        and goes on for less, and what is provisioned."""
        return max(0 if self._still else self._needed, self.provisioned - len(self._ready))

    @property
    def provisioned(self) -> int:
        """`scale.min`, while the gateway keeps it."""
        return min(self.revision.spec.scale.min, self.desired)

    def _stop_surplus(self) -> None:
        self._call_off(len(self._starting) + len(self._ready) - self.desired)
        idle = [*self._still, *(instance for instance in self._free if instance.state is IDLE)]
        for instance in idle[: max(0, len(self._ready) - self.desired)]:
            self.destroy(instance, reconcile=False)  # else each of them would begin here anew, inside the one before

    def _call_off(self, most: int) -> None:
        """Call off launches, `most` at most, that have no sandbox yet: it costs nothing."""
        idle = self._queued - self._checking
        for instance in [instance for instance in self._starting if instance in idle][: max(0, most)]:
            self._cancel(instance)

    def _forgo(self) -> None:
        """Nothing waits for memory where whoever needed it has been served, or has gone; launches are called off."""
        if not self._starting and not self._still:
            return
        self._still.want(max(self._needed, self.provisioned - len(self._ready) + len(self._still)))
        if not (asking := self._memory.asking):
            return
        needless = len(self._starting) - len(self._checking) - self._wanted
        for instance in asking:
            if needless > 0 and instance in self._starting and instance not in self._checking:
                self._cancel(instance)
                needless -= 1

    def _cancel(self, instance: Instance) -> None:
        self._queued.discard(instance)
        del self._starting[instance]
        self._launches[instance].cancel()

    # Launching

    def start(self, charge: Charge | None = None, *, checking: bool = False) -> tuple[Instance, asyncio.Future[None]]:
        """Launch one more, with memory or to wait for it; the future resolves when it is ready, or with its failure."""
        instance = self.parts.instance(self.revision, self.consumption.add)
        instance.charge = charge
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._starting[instance] = ready
        if checking:
            self._checking.add(instance)
        self.parts.janitor.know(instance.id)
        self._queued.add(instance)
        task = asyncio.get_running_loop().create_task(self._launch(instance), name=f"launch of {instance.id}")
        self._launches[instance] = task
        task.add_done_callback(lambda done: self._launched(instance, ready, done))
        return instance, ready

    async def _launch(self, instance: Instance) -> None:
        async with self._turns:
            if instance.charge is None:  # an invocation's wait ends by itself, and its launch with it
                wait_seconds = self.revision.spec.queue_timeout if instance in self._checking else None
                instance.charge = await self._memory.charge(instance, wait_seconds)
            await self.parts.launches.launch(instance, self._queued.discard, self._exited)

    def _refusal(self, waited: float) -> Throttled:
        return self._memory.refusal(waited, self._still.stuck)

    def _coming(self) -> int:
        """Slots that are on their way."""
        return (len(self._starting) - self._memory.stuck) * self.revision.spec.concurrency + self._still.promised

    def _launched(self, instance: Instance, ready: asyncio.Future[None], task: asyncio.Task[None]) -> None:
        """A launch is over, one way or the other."""
        checked = instance in self._checking
        self._starting.pop(instance, None)
        self._launches.pop(instance, None)
        self._checking.discard(instance)
        self._queued.discard(instance)
        if task.cancelled():
            ready.set_exception(ShuttingDown())
            ready.exception()
            self._leaving.stop(instance)
            return
        error = task.exception()
        if error is None and instance.outcome is not None:  # `_exited` left it to us, also after the task's last step
            error = InitFailed(f"the instance ended right after its init: {instance.outcome}")
        if error is None:
            self._started(instance, checked=checked)
            ready.set_result(None)
            return
        assert isinstance(error, FaasError)
        ready.set_exception(error)
        ready.exception()  # seen: where nobody checks, the waiters are told
        self._failed(instance, error, checked=checked)

    def _started(self, instance: Instance, *, checked: bool) -> None:
        cold = instance.cold_start
        assert cold is not None
        self.parts.failures.started(self.revision.key)
        self.parts.precreator.started(self, cold.path)
        if checked and not self.retired:
            self.desired = max(self.desired, 1)  # kept, until somebody says otherwise
        self._ready[instance] = None
        self._free[instance] = None
        self._memory.may_be_evicted(instance, lambda: self.destroy(instance))
        self._serve()
        # After whoever was served has gone on: a function's first figures take as long to make as its start's messages.
        asyncio.get_running_loop().call_soon(count_start, self.parts.metrics, self.label, cold)
        self._still.rests(instance)
        self.waiters.expire()
        self._reconcile()
        self.parts.ledger.settle()

    def _failed(self, instance: Instance, failure: FaasError, *, checked: bool) -> None:
        self._leaving.stop(instance)
        self.backoff.failed()
        self.parts.failures.start_failed(self.revision.key, instance.id, failure)
        told = len(self.waiters) > 0
        if isinstance(failure, InitFailed) or self._ready:
            self.waiters.fail_oldest(failure)
        else:  # no image, no room: the next launch would fail alike
            self.waiters.fail_all(failure)
        self._call_off(len(self._starting) - self._needed)  # they would fail alike
        if not told and not checked:
            log.warning("%s: %s", self.revision.key, failure, extra={"instance": instance.id})
        self.waiters.expire()
        self._reconcile()

    # Ending

    def _exited(self, instance: Instance) -> None:
        """Its first process has ended, by itself or by us."""
        if instance not in self._ready:
            return  # its launch sees it, or we did it
        if instance.state is IDLE:
            log.info("an idle instance ended: %s", instance.outcome, extra={"instance": instance.id})
            self.backoff.ended(time.time() - instance.started_at)
        self.destroy(instance)

    def destroy(self, instance: Instance, *, reconcile: bool = True) -> None:
        """Take it out of use: killed at once, or when what else runs in it has ended or its time is over."""
        if instance not in self._ready:
            return
        del self._ready[instance]
        self._free.pop(instance, None)
        self._still.discard(instance)
        if instance.state is BUSY:
            self._busy -= 1
        self._leaving.stop(instance)
        if reconcile:
            self._reconcile()

    async def drain(self, seconds: float) -> None:
        """Stop everything: idle ones now, busy ones when they have ended, `seconds` at most, then all."""
        self.retired, self.desired = True, 0
        launches = list(self._launches.values())
        for task in launches:
            task.cancel()
        await asyncio.gather(*launches, return_exceptions=True)
        self.backoff.cancel()
        self._reconcile()
        if self._executing:
            self._quiet = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._quiet.wait()
        for instance in list(self._ready):
            self.destroy(instance)
        self._leaving.remove_all()

    # What is observed

    def stats(self) -> RevisionStats:
        idle = len(self._ready) - self._busy
        return RevisionStats(len(self._starting), idle, self._busy, self._executing, len(self.waiters))

    @property
    def every_instance(self) -> tuple[Instance, ...]:
        return (*self._starting, *self._ready, *self._leaving)

    @property
    def stopping(self) -> int:
        return len(self._leaving)
