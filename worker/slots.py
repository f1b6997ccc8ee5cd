"""`Slots`: who has a slot of one revision's instances, and who waits for one. How many instances there are is
`RevisionPool`'s, which this is the half of that every invocation passes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

from faas.errors import NotFound, Throttled
from faas.protocol import Revision
from worker.instance import IDLE, Instance
from worker.leaving import Leaving
from worker.memory.still import Still
from worker.parts import Parts
from worker.sandbox_spec import label
from worker.waiters import Waiters


class Slots(ABC):
    """Claimed by `try_take…` and `take`, given back by `release`."""

    def __init__(self, revision: Revision, parts: Parts) -> None:
        self.revision = revision
        self.label = label(revision)
        self.parts = parts
        self.moved_at, self.desired, self.retired = 0.0, 0, False
        self.passing: Instance | None = None  # its only slot is being given back: whoever claims one now has it at once
        self._starting: dict[Instance, asyncio.Future[None]] = {}  # resolves when it is ready
        self._ready: dict[Instance, None] = {}  # idle and busy ones
        self._free: dict[Instance, None] = {}  # of them those with slot and memory free: longest unused first
        self._leaving = Leaving(parts.janitor, self._reconcile)
        self._busy = 0
        self.waiters = Waiters(self._coming, self._refusal)
        self._still = Still(parts, self._spared, self._goes_on, self.waiters.expire, self._come_to_rest)
        self._quiet: asyncio.Event | None = None

    @abstractmethod
    def _reconcile(self) -> None:
        """Bring what there is to what there should be."""

    @abstractmethod
    def _forgo(self) -> None:
        """Somebody waits no more."""

    @abstractmethod
    def _coming(self) -> int:
        """Slots that are on their way."""

    @abstractmethod
    def _refusal(self, waited: float) -> Throttled:
        """What is said after a wait of so many seconds."""

    @abstractmethod
    def destroy(self, instance: Instance, *, reconcile: bool = True) -> None:
        """Take it out of use."""

    @property
    @abstractmethod
    def provisioned(self) -> int:
        """So many are to be ready at once."""

    # Taking

    def try_take(self) -> Instance | None:
        """A slot of the most recently used instance that has one."""
        if len(self.waiters) or (instance := self._newest()) is None:
            return None
        return self._claim(instance)

    def try_take_ready(self) -> Instance | None:
        """The same, where that instance is ready to run this moment: it does not stand still."""
        if not self._free or self.waiters.queue or self.retired:
            return None
        instance = next(reversed(self._free))
        if instance.outcome is not None or instance.stands_still:
            return None
        return self._claim(instance)

    async def take(self, wait_seconds: float) -> Instance:
        """A slot, waited for. Raises Throttled, InitFailed, what else a launch failed with, NotFound."""
        if (instance := self.try_take()) is not None:
            return instance
        if self.retired:
            raise NotFound(f"{self.revision.key} is gone")
        waiter = self.waiters.add(wait_seconds)
        self._reconcile()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self.waiters.remove(waiter)
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it came together with the cancellation
            raise
        finally:
            self._forgo()

    def _newest(self) -> Instance | None:
        """The most recently used instance with a free slot; one that stands still only where there is no other."""
        while self._free:
            instance = next(reversed(self._free))
            if instance.outcome is None:
                return instance
            self.destroy(instance)
        if (going_on := self._still.go_on()) is not None:
            self._free[going_on] = None
        return going_on

    def _claim(self, instance: Instance) -> Instance:
        if not instance.executing:
            self._busy += 1
            self.parts.freezer.discard(instance)
        instance.claim()
        if instance.executing == instance.slots:
            del self._free[instance]
        return instance

    def release(self, instance: Instance) -> None:
        """Give a slot back; it goes to the oldest waiter, if there is one."""
        executing = instance.executing
        if executing > 1 and instance in self._free and not self.waiters.queue:
            instance.executing = executing - 1  # one of several: it was not full, and does not become idle
            return
        ledger = self.parts.ledger
        if executing == 1 and self._is_steady and instance in self._ready and instance.outcome is None:
            instance.pause()
            self.moved_at = instance.idle_since
            self._busy -= 1
            self._free.setdefault(instance)
            self._still.pauses(instance)
            return
        owed = bool(ledger.waiting) and ledger.is_owed(self)
        instance.release(0 if owed or self.provisioned else self._still.yields(instance))
        self.moved_at = instance.idle_since
        if self._quiet is not None and not self._executing:
            self._quiet.set()
        if instance in self._ready:
            if instance.state is IDLE:
                self._busy -= 1
            if instance.outcome is not None:
                self.destroy(instance)
                return
            self._free.setdefault(instance)
            if owed:
                ledger.settle()  # those of others that wait for so long come before our own
            self._serve()
            self._still.rests(instance)
            self._reconcile()
            ledger.settle()
        else:
            self._leaving.released(instance)

    def pass_on(self) -> Instance | None:
        """The instance in `passing`, its slot taken anew: it never comes to rest in between. None where others come
        first: then it has been given back like any other."""
        instance = self.passing
        assert instance is not None
        if not self._is_steady or instance not in self._ready or instance.outcome is not None:
            self.put_back()
            return None
        self.passing = None
        instance.invocations += 1
        return instance

    def put_back(self) -> None:
        """Nobody took what is in `passing`."""
        instance, self.passing = self.passing, None
        assert instance is not None
        self.release(instance)

    @property
    def _executing(self) -> int:
        """Invocations, those of instances that are on their way out included."""
        return sum(instance.executing for instance in (*self._ready, *self._leaving))

    @property
    def _is_steady(self) -> bool:
        """Whether nobody waits, for a slot or for memory, and there are as many instances as there should be."""
        if self.waiters.queue or self.parts.ledger.waiting or self._quiet is not None or self._still.instances:
            return False
        return self.desired == len(self._ready) and not self._starting

    def _come_to_rest(self, instance: Instance) -> None:
        """Nobody has taken it again: what it does not need is others'."""
        if instance not in self._free:
            return
        if instance.charge is not None:
            instance.charge.rest(0 if self.provisioned else self._still.yields(instance))
        self._still.rests(instance)
        self._reconcile()
        self.parts.ledger.settle()

    def _serve(self) -> None:
        while len(self.waiters) and (instance := self._newest()) is not None:
            if (waiter := self.waiters.pop()) is None:
                self._still.froze(instance)  # they have gone: it stands still again
                return
            waiter.future.set_result(self._claim(instance))

    def _spared(self, instance: Instance) -> bool:
        """Whether its memory may be others' while it stands still: the provisioned number is ready at once."""
        if instance not in self._free or len(self._ready) - len(self._still) <= self.provisioned:
            return False
        del self._free[instance]
        asyncio.get_running_loop().call_soon(self._reconcile)  # others may be started in it
        return True

    def _goes_on(self, instance: Instance) -> None:
        """One that stood still has all its memory again."""
        assert instance.charge is not None
        self._free[instance] = None
        instance.charge.rest()
        self._serve()
        self._still.froze(instance)  # where nobody needs it any more
        self.waiters.expire()
        self._reconcile()
