"""`Still`: the idle instances of one revision that stand still: which are charged no more than they have, and which of
those wait for the rest of their memory, to go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from worker.instance import IDLE, Instance
from worker.memory.charge import Readmission, still_size
from worker.parts import Parts

PAUSE_SECONDS = 0.002


class Still:
    """Holds those that are charged less than they may use.

    `spared` takes one out of use where not so many must be ready at once, and says whether it did; `goes_on` puts one
    back into use that has its memory again; `lost`: memory that was on its way is not any more; `at_rest`: one that
    paused has not been taken again. At most as many wait at once as launches.
    """

    def __init__(
        self,
        parts: Parts,
        spared: Callable[[Instance], bool],
        goes_on: Callable[[Instance], None],
        lost: Callable[[], None],
        at_rest: Callable[[Instance], None],
    ) -> None:
        self._ledger = parts.ledger
        self._freezer = parts.freezer
        self._at_once = parts.at_once
        self._spared = spared
        self._goes_on = goes_on
        self._lost = lost
        self._at_rest = at_rest
        self._pausing: dict[Instance, None] = {}
        self.instances: dict[Instance, None] = {}  # the longest unused first
        self._asking: dict[Instance, Readmission] = {}  # of them; the oldest request first

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    @property
    def stuck(self) -> int:
        """So many wait for memory that is not even on its way."""
        return sum(not request.promised for request in self._asking.values())

    @property
    def promised(self) -> int:
        """So many will go on in a moment."""
        return len(self._asking) - self.stuck

    # Coming to rest

    def pauses(self, instance: Instance) -> None:
        """It is idle, and comes to rest in a moment where nobody takes it again: on a busy function's way, that costs
        an entry of a dict."""
        if not self._pausing:
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._paused)
            self._ledger.pausing[self._paused] = None
        self._pausing[instance] = None

    def _paused(self) -> None:
        self._ledger.pausing.pop(self._paused, None)
        pausing, self._pausing = self._pausing, {}
        for instance in pausing:
            if instance.state is IDLE:
                self._at_rest(instance)

    def yields(self, instance: Instance) -> int:
        """Bytes that will be free when it stands still, as far as is known."""
        if instance.charge is None or not self._freezer.freezes(instance):
            return 0
        return instance.charge.full - still_size(instance.memory_bytes, instance.charge.full)

    def rests(self, instance: Instance) -> None:
        """It may have become idle."""
        if instance.state is IDLE:
            self._freezer.add(instance, self.froze)

    def froze(self, instance: Instance) -> None:
        """It is idle and frozen, or could not be. Where it is spared, the rest of its memory is free."""
        charge = instance.charge
        if charge is None or instance.state is not IDLE:
            return
        if not instance.is_frozen or not self._spared(instance):
            charge.keep()
            return
        instance.sample(time.monotonic(), 0.0)
        self.instances[instance] = None
        charge.shrink(still_size(instance.memory_bytes, charge.full))

    def discard(self, instance: Instance) -> None:
        """It is being ended."""
        self._freezer.discard(instance)
        self.instances.pop(instance, None)
        if (request := self._asking.pop(instance, None)) is not None:
            self._ledger.forget(request)

    # Going on

    def go_on(self) -> Instance | None:
        """The most recently used one, if the rest of its memory is free: it is none of these any more."""
        for instance in reversed(self.instances):
            if instance.outcome is None and instance not in self._asking:
                assert instance.charge is not None
                if not instance.charge.try_grow():
                    return None
                del self.instances[instance]
                return instance
        return None

    def want(self, wanted: int) -> None:
        """Have so many go on, as soon as there is memory for them; what was asked for beyond that is withdrawn."""
        wanted = min(wanted, self._at_once)
        while len(self._asking) > max(0, wanted):
            _, request = self._asking.popitem()
            self._ledger.forget(request)
        if len(self._asking) < wanted:
            for instance in reversed(self.instances):
                if len(self._asking) >= wanted:
                    return
                if instance not in self._asking and instance.outcome is None:
                    self._ask(instance)

    def _ask(self, instance: Instance) -> None:
        assert instance.charge is not None
        self._asking[instance] = self._ledger.readmit(instance.charge, lambda: self._granted(instance), self._lost)

    def _granted(self, instance: Instance) -> None:
        if instance not in self.instances:
            return  # it is being ended
        self._asking.pop(instance, None)
        del self.instances[instance]
        self._goes_on(instance)
